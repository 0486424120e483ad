"""Nested states come back as they were: every bit, every type, every key."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands.errors import StorageError, UsageError
from manyhands.store.state import flatten, restore
from manyhands.store.tensorfiles import read_state, write_state

torch.set_num_threads(1)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
tensors = st.sampled_from(
    [
        torch.tensor(3.5),
        torch.zeros(0, 3),
        torch.arange(6, dtype=torch.int64).reshape(2, 3),
        torch.tensor([float("nan"), -0.0], dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.tensor([1 + 2j], dtype=torch.complex64),
        torch.tensor([1 - 2j], dtype=torch.complex128),
    ]
)
keys = (
    st.integers()
    | st.text(max_size=8)
    | st.booleans()
    | st.none()
    | st.tuples(st.integers(), st.text(max_size=2))
)
states = st.recursive(
    scalars | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        raw = [t.contiguous().reshape(-1).view(torch.uint8) if t.numel() else t for t in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, dict):
        # 1 and True are one key to a dict, so types are compared too.
        return len(a) == len(b) and all(
            same(ka, kb) and same(va, vb) for (ka, va), (kb, vb) in zip(a.items(), b.items(), strict=True)
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@settings(max_examples=200, deadline=None)
@given(states)
def test_any_state_round_trips(state):
    assert same(restore(*flatten(state)), state)


@settings(max_examples=25, deadline=None)
@given(state=states)
def test_any_state_round_trips_through_a_file(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("state") / "optimizer.safetensors"
    write_state(path, state)
    assert same(read_state(path), state)


def test_paths_that_collide_stay_apart():
    state = {"a.b": torch.tensor(1.0), "a": {"b": torch.tensor(2.0)}}
    assert same(restore(*flatten(state)), state)


def test_a_tensor_that_appears_twice_is_stored_once():
    shared = torch.ones(3)
    stored, text = flatten({"x": shared, "y": [shared]})
    assert len(stored) == 1
    back = restore(stored, text)
    assert back["x"] is back["y"][0]


def test_schedulers_counters_keep_their_type():
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5])
    state = {"scheduler": scheduler.state_dict(), "ordered": OrderedDict(a=1)}
    back = restore(*flatten(state))
    assert back == state
    assert type(back["scheduler"]["milestones"]) is Counter
    assert type(back["ordered"]) is OrderedDict


@pytest.mark.parametrize("value", [object(), lambda: None, {1, 2}, b"x", torch.float32])
def test_what_is_not_data_is_named(value):
    with pytest.raises(UsageError, match=r"param_groups\.0\.thing"):
        flatten({"param_groups": [{"thing": value}]})


def test_sparse_tensors_are_refused():
    with pytest.raises(UsageError, match="dense"):
        flatten({"x": torch.eye(2).to_sparse()})


def test_a_state_that_contains_itself_is_refused():
    state: dict[str, object] = {}
    state["self"] = state
    with pytest.raises(UsageError, match="nested deeper"):
        flatten(state)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"tensor":"x"}',
        '{"exec":[]}',
        '{"a":1,"b":2}',
        '{"float":"x"}',
        '{"dict":[[{"dict":[]},1]]}',
    ],
)
def test_text_that_nobody_wrote_is_refused(text):
    with pytest.raises(StorageError):
        restore({}, text)
