"""The state of a whole model as the boss keeps it: what every placement can start from.

A snapshot is what `stage.weights.StageState` says of all stages together; before the first one there is what the
user's model began with, read layer by layer when it is asked for. Knows no worker and no stream.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from torch import Tensor

from manyhands.errors import ProtocolError
from manyhands.pipeline.stage.weights import StageState

PART_BYTES: Final = 64 << 20
"""State travels in parts of about this size, so that no frame holds a whole model."""
Part = dict[str, Any]
"""`{"parameters": {name: tensor}, "buffers": ..., "optimizer": {name: {key: tensor}}}`, each perhaps in part."""


def parts(state: StageState, names: Collection[str] | None = None) -> Iterator[Part]:
    """What travels of `state`, all of it or what belongs to `names`; at least one part."""
    part: Part = _empty()
    size = 0
    for kind, name, value in _entries(state):
        if names is not None and name not in names:
            continue
        part[kind][name] = value
        size += sum(one.nbytes for one in (value.values() if isinstance(value, Mapping) else [value]))
        if size >= PART_BYTES:
            yield part
            part, size = _empty(), 0
    yield part


def joined(received: Collection[Any], step: int, lr: float | None) -> StageState:
    """The state that came in these parts. ProtocolError where one is none."""
    state = StageState({}, {}, {}, step, lr)
    for part in received:
        if not isinstance(part, dict) or set(part) != set(_empty()):
            raise ProtocolError("what came as a stage's state is none")
        state.parameters.update(_tensors(part["parameters"]))
        state.buffers.update(_tensors(part["buffers"]))
        state.optimizer.update({name: _tensors(kept) for name, kept in _mapping(part["optimizer"]).items()})
    return state


def _entries(state: StageState) -> Iterator[tuple[str, str, Any]]:
    yield from (("parameters", name, one) for name, one in state.parameters.items())
    yield from (("buffers", name, one) for name, one in state.buffers.items())
    yield from (("optimizer", name, kept) for name, kept in state.optimizer.items())


def _empty() -> Part:
    return {"parameters": {}, "buffers": {}, "optimizer": {}}


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError("what came as a stage's state is none")
    return value


def _tensors(value: Any) -> dict[str, Tensor]:
    tensors = _mapping(value)
    if not all(isinstance(one, Tensor) for one in tensors.values()):
        raise ProtocolError("a stage's state holds something that is no tensor")
    return tensors
