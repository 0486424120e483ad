"""Layouts: where tensors lie in a body that carries no schema, and what two sides tell each other of it."""

from __future__ import annotations

import gc
import hashlib

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyhands.errors import ProtocolError, UsageError
from manyhands.tensors import Layout, TensorSpec, WireSpec, WireSpecs, allocate
from manyhands.tensors.dtypes import DTYPES

torch.set_num_threads(1)
SPECS = st.lists(
    st.tuples(st.sampled_from(sorted(set(DTYPES) - {"complex32"})), st.lists(st.integers(0, 5), max_size=4)),
    max_size=8,
)


def layout_of(*shapes, dtype=torch.float32):
    return Layout(tuple(TensorSpec(f"t{at}", dtype, shape) for at, shape in enumerate(shapes)))


def model():
    return torch.nn.Sequential(torch.nn.Linear(12, 5), torch.nn.BatchNorm1d(5))


@given(SPECS)
def test_tensors_lie_in_order_aligned_apart_and_padded_with_zeros(drawn):
    specs = tuple(TensorSpec(str(at), DTYPES[dtype], tuple(shape)) for at, (dtype, shape) in enumerate(drawn))
    layout = Layout(specs)
    end = 0
    for spec, offset in zip(layout.specs, layout.offsets, strict=True):
        assert offset % 64 == 0
        assert 0 <= offset - end < 64
        end = offset + spec.num_bytes
    assert layout.num_bytes % 64 == 0
    assert 0 <= layout.num_bytes - end < 64
    body = layout.allocate()
    views = layout.views(body)
    for view, spec in zip(views, specs, strict=True):
        assert (view.dtype, tuple(view.shape), view.is_contiguous()) == (spec.dtype, spec.shape, True)
        assert view.data_ptr() % 64 == 0
        if view.numel():
            view.view(-1).view(torch.uint8).fill_(255)
    assert int((body == 0).sum()) == layout.num_bytes - sum(spec.num_bytes for spec in specs)


def test_views_share_the_body_and_keep_it_alive():
    layout = Layout.of(model().state_dict().items())
    body = layout.allocate()
    body.zero_()
    views = layout.views(body)
    views[0].fill_(2.0)
    assert body[:4].view(torch.float32).item() == 2.0
    first = views[0]
    del body, views
    gc.collect()
    allocate(1 << 16).fill_(1)
    assert bool((first == 2.0).all())


def test_a_write_to_one_view_does_not_void_what_autograd_saved_of_another():
    """Slices of one tensor share a version counter: changing labels in place failed backward of inputs."""
    layout = layout_of((3,), (3,))
    first, second = layout.views(layout.allocate())
    first.fill_(1.0)
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * first).sum()
    second.zero_()
    loss.backward()
    assert weight.grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("num_bytes", [0, 1, 63, 64, 4096, 100_003, 5 << 20])
def test_allocated_memory_is_aligned(num_bytes):
    memory = [allocate(num_bytes) for _ in range(5)]
    assert all(one.data_ptr() % 64 == 0 and one.shape == (num_bytes,) for one in memory)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (torch.zeros(128, dtype=torch.uint8), "of 64 bytes, and got 128"),
        (torch.zeros(64), "uint8"),
        (torch.zeros(8, 8, dtype=torch.uint8), "1-d"),
        (torch.zeros(128, dtype=torch.uint8)[::2], "contiguous"),
        (torch.zeros(128, dtype=torch.uint8)[1:65], "multiple of 64"),
        (torch.zeros(64, dtype=torch.uint8, device="meta"), "CPU"),
    ],
)
def test_a_body_that_does_not_fit_is_refused(body, says):
    with pytest.raises(UsageError, match=says):
        layout_of((3,)).views(body)


def test_the_wire_form_round_trips_and_the_digest_follows_the_schema():
    layout = Layout.of(model().state_dict().items())
    wire = msgspec.msgpack.encode(layout.to_wire())
    back = Layout.from_wire(msgspec.msgpack.decode(wire, type=WireSpecs), max_bytes=layout.num_bytes)
    assert back == layout
    assert back.digest() == layout.digest()
    assert layout_of((3, 2)).digest() != layout_of((2, 3)).digest()
    assert layout_of((3,)).digest() == hashlib.sha256(b"\x91\x93\xa2t0\xa7float32\x91\x03").hexdigest()


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        (
            [WireSpec("a", "float32", (16,)), WireSpec("b", "float32", (1009,))],
            "needs 4160 bytes; at most 4096",
        ),
        ([WireSpec("a", "object", (1,))], "'object'"),
        ([WireSpec("a", "__class__", (1,))], "no known dtype"),
        ([WireSpec("a", "bool", (1,)), WireSpec("a", "bool", (1,))], "twice"),
        ([WireSpec("a", "bool", (1 << 40, 1 << 40))], "at most 4096"),
        ([WireSpec("a", "bool", (1 << 40, 1 << 40, 0))], "more than 1099511627776 elements"),
    ],
)
def test_a_layout_that_lies_is_refused(specs, says):
    with pytest.raises(ProtocolError, match=says):
        Layout.from_wire(specs, max_bytes=4096)


@pytest.mark.parametrize(
    "spec",
    [
        ["n" * 513, "bool", [1]],
        ["a", "b" * 33, [1]],
        ["a", "bool", [-1]],
        ["a", "bool", [2**63]],
        ["a", "bool", [1] * 65],
        ["a", "bool", [1], 0],
    ],
)
def test_a_spec_out_of_bounds_does_not_parse(spec):
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode([spec]), type=WireSpecs)


def test_the_first_difference_is_a_sentence():
    here = Layout.of([("layers.0.weight", torch.empty(5, 10)), ("b", torch.empty(1))])
    there = Layout.of([("layers.0.weight", torch.empty(5, 12)), ("b", torch.empty(1))])
    assert here.first_difference(there) == (
        "layers.0.weight is float32 (5, 10) here and float32 (5, 12) there"
    )
    renamed = Layout.of([("weight", torch.empty(5, 10))])
    assert here.first_difference(renamed) == "tensor 0 is 'layers.0.weight' here and 'weight' there"
    shorter = Layout(here.specs[:1])
    assert here.first_difference(shorter) == "there are 2 tensors here and 1 there; b is only here"
    assert shorter.first_difference(here) == "there are 1 tensors here and 2 there; b is only there"
    half = Layout((TensorSpec("b", torch.float16, (1,)),))
    assert half.first_difference(Layout(here.specs[1:])) == "b is float16 (1,) here and float32 (1,) there"
    assert here.first_difference(Layout(here.specs)) is None


def test_bad_names_and_dtypes_of_our_own_are_usage_errors():
    one = torch.ones(1)
    with pytest.raises(UsageError, match="twice"):
        Layout.of([("a", one), ("a", one)])
    with pytest.raises(UsageError, match="513 characters"):
        Layout.of([("a" * 513, one)])
    with pytest.raises(UsageError, match="qint8"):
        Layout((TensorSpec("a", torch.qint8, (1,)),))
    with pytest.raises(UsageError, match="100001 tensors"):
        Layout((TensorSpec("a", torch.bool, ()),) * 100_001)


def test_an_empty_layout_has_an_empty_body():
    layout = Layout.of([])
    assert layout.num_bytes == 0
    assert layout.views(layout.allocate()) == []
