"""Frames of well-meaning senders: every dtype and dense layout, bit for bit, copied no more than needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands.errors import ProtocolError, UsageError
from manyhands.tensors import allocate, bytes_of, decode, encode
from manyhands.tensors.dtypes import DTYPES
from manyhands.tensors.frame import HEADER_BYTES
from manyhands.tensors.memory import densified

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def bits(tensor):
    return bytes(bytes_of(densified(tensor).contiguous()))


def same(one, other):
    """Equal to the bit, in values, types, dtypes, shapes and memory order."""
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and bits(one) == bits(other)
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return (
            type(one) is type(other)
            and len(one) == len(other)
            and all(same(a, b) for a, b in zip(one, other, strict=True))
        )
    return type(one) is type(other) and repr(one) == repr(other)


def tensors_in(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for item in items for tensor in tensors_in(item)]


@st.composite
def tensors(draw):
    """Random bits of any dtype in a random dense or strided memory order."""
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    count = int(np.prod(shape, dtype=np.int64))
    raw = np.random.default_rng(draw(st.integers(0, 2**32))).integers(
        0, 2 if dtype == torch.bool else 256, count * dtype.itemsize, np.uint8
    )
    tensor = torch.from_numpy(raw).view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)
    order = draw(st.permutations(range(len(shape))))
    tensor = tensor.permute(order)
    if shape and draw(st.booleans()):
        dim = draw(st.integers(0, len(shape) - 1))
        index = [slice(None)] * len(shape)
        index[dim] = slice(draw(st.integers(0, 1)), None, draw(st.integers(1, 2)))
        tensor = tensor[tuple(index)]
    return tensor


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=8)
)
KEYS = st.text(st.characters(codec="utf-8"), max_size=8) | st.integers(-5, 5)
TREES = st.recursive(
    SCALARS | tensors(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(TREES)
def test_any_tree_comes_back_to_the_bit(tree):
    frame = encode(tree)
    data = frame.to_bytes()
    assert len(data) == frame.num_bytes
    back = decode(data)
    assert same(tree, back)
    for sent, got in zip(tensors_in(tree), tensors_in(back), strict=True):
        assert got.data_ptr() % 64 == 0
        if sent.numel() > 1 and 1 not in sent.shape:
            assert got.stride() == densified(sent).stride()
    assert encode(back).to_bytes() == data


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_travels_and_arrives_writable(name):
    raw = torch.arange(48, dtype=torch.uint8) % (2 if name == "bool" else 48)
    tensor = raw.view(DTYPES[name])
    back = decode(encode(tensor).to_bytes())
    assert same(tensor, back)
    back.view(torch.uint8).zero_()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(1, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(2, 1, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(2, 3, 2, 4, 5).to(memory_format=torch.channels_last_3d),
        torch.randn(3, 4).t(),
        torch.randn(2, 3, 4).permute(2, 0, 1),
        torch.tensor(3.5),
        torch.randn(4, 10)[1:2, :5],
    ],
    ids=["nhwc", "nhwc-1", "nhwc-c1", "ndhwc", "transposed", "permuted", "scalar", "one-row"],
)
def test_dense_memory_order_is_kept_and_nothing_is_copied_to_send_it(tensor):
    frame = encode(tensor)
    addresses = [np.frombuffer(part, np.uint8).ctypes.data for part in frame.parts() if len(part)]
    assert tensor.data_ptr() in addresses
    back = decode(frame.to_bytes())
    assert same(tensor, back)
    for memory_format in (torch.contiguous_format, torch.channels_last, torch.channels_last_3d):
        if tensor.dim() == {torch.channels_last: 4, torch.channels_last_3d: 5}.get(
            memory_format, tensor.dim()
        ):
            wanted = tensor.is_contiguous(memory_format=memory_format)
            assert back.is_contiguous(memory_format=memory_format) == wanted
    if 1 not in tensor.shape:
        assert back.stride() == tensor.stride()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(4, 6)[:, ::2],
        torch.randn(3, 1).expand(3, 4),
        torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)[::2],
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.randn(3, dtype=torch.complex64).conj().imag,
        torch.nn.Parameter(torch.randn(3)),
        torch.empty(0, 3),
        torch.empty(3, 0).t(),
        torch.randn(2, 3, requires_grad=True).exp(),
    ],
    ids=["strided", "expanded", "every-other", "conj", "neg", "parameter", "empty", "empty-t", "graph"],
)
def test_any_other_tensor_travels_by_value(tensor):
    back = decode(encode([tensor]).to_bytes())[0]
    assert same(tensor.detach(), back)
    assert type(back) is torch.Tensor
    assert not back.requires_grad


def test_a_slice_of_a_channels_last_batch_stays_channels_last():
    images = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)[::2]
    assert decode(encode(images).to_bytes()).is_contiguous(memory_format=torch.channels_last)


def test_aligned_writable_memory_is_used_in_place():
    frame = encode({"x": torch.arange(40.0), "y": torch.arange(3)})
    body = allocate(frame.num_bytes)
    body.numpy()[:] = np.frombuffer(frame.to_bytes(), np.uint8)
    for data in (body, body.numpy().data):
        back = decode(data)
        start = body.data_ptr()
        for tensor in back.values():
            assert start <= tensor.data_ptr() < start + frame.num_bytes
            assert tensor.data_ptr() % 64 == 0
    del body, data
    assert torch.equal(back["x"], torch.arange(40.0)), "tensors keep the memory alive"


@pytest.mark.parametrize("shift", [0, 1, 8, 63])
def test_memory_that_is_read_only_or_unaligned_is_copied_once_into_aligned_memory(shift):
    data = encode([torch.arange(40.0)]).to_bytes()
    room = allocate(shift + len(data))[shift:]
    room.numpy()[:] = np.frombuffer(data, np.uint8)
    for source in (data, room.numpy().data.toreadonly(), *([room] if shift else [])):
        back = decode(source)[0]
        assert back.data_ptr() % 64 == 0
        assert torch.equal(back, torch.arange(40.0))
        back.add_(1)
    assert bytes(room.numpy()) == data, "what is not used in place is never written to"


def test_a_frame_of_another_item_size_or_shape_of_buffer_is_read_or_refused():
    data = encode([torch.arange(40.0)]).to_bytes()
    assert torch.equal(decode(memoryview(data).cast("B", (2, len(data) // 2)))[0], torch.arange(40.0))
    with pytest.raises(UsageError, match="uint8"):
        decode(torch.zeros(8))


def test_a_batch_tensor_has_its_own_version_counter():
    """In-place masking of labels after the forward pass must not fail the backward pass of the inputs."""
    batch = decode(encode({"x": torch.ones(3), "y": torch.ones(3)}).to_bytes())
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * batch["x"]).sum()
    batch["y"].fill_(-100)
    loss.backward()
    assert batch["x"].untyped_storage().nbytes() == 12, "saving one tensor must not save the batch"


def test_numpy_arrays_arrive_as_aligned_writable_arrays():
    back = decode(encode({"a": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "n": np.int8(3)}).to_bytes())
    assert isinstance(back["a"], np.ndarray)
    assert back["a"].flags.f_contiguous
    back["a"][0, 0] = 9
    assert type(back["n"]) is np.int8


def test_a_schema_too_large_is_a_usage_error():
    with pytest.raises(UsageError, match="put numbers into tensors"):
        encode(["x" * (16 << 20)])


GOLDEN = (
    bytes.fromhex("4d486672 0100 0000 40000000 9f707fa0 4100000000000000")
    + b"\x92\x91\x96\x92\xa1d\x92\xa1x\xa1y\x92\xa1t\xa6tensor"
    + b"\x93\xa1s\xa5tuple\x03\x92\xa1t\xa6tensor\xc0\x07"
    + b"\x92\x93\xa7float32\x91\x02\xc0\x93\xa4bool\x90\xc0"
    + bytes(40)
    + bytes.fromhex("0000803f 00000080")
    + bytes(56)
    + b"\x01"
)


def test_the_bytes_of_a_frame_are_fixed():
    """64 bytes of schema, 65 of body: what one version wrote, every later one of its number must read."""
    tree = {"x": torch.tensor([1.0, -0.0]), "y": (torch.tensor(True), None, 7)}
    assert encode(tree).to_bytes() == GOLDEN
    assert same(decode(GOLDEN), tree)


def test_equal_scalars_of_other_types_keep_theirs_in_frames_that_follow_each_other():
    for scalar in (1, True, 1.0, 0.0, -0.0, False, "1"):
        for tree in ([scalar, torch.ones(2)], {scalar: torch.ones(2)}):
            assert same(decode(encode(tree).to_bytes()), tree)


def test_a_frame_may_leave_its_tensors_bytes_to_its_carrier():
    """The crc32 covers the schema then: a changed schema is found, a changed element is the carrier's to find."""
    batch = {"x": torch.arange(100.0), "y": 3}
    data = bytearray(encode(batch, checks_body=False).to_bytes())
    assert torch.equal(decode(bytes(data))["x"], batch["x"])
    data[-1] ^= 1
    assert not torch.equal(decode(bytes(data))["x"], batch["x"])
    data[HEADER_BYTES] ^= 1
    with pytest.raises(ProtocolError, match="crc32"):
        decode(bytes(data))
