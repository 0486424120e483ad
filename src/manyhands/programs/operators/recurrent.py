"""LSTM, GRU and plain recurrent networks, whole sequences and single cells.

The fused kernels multiply by addresses computed from the first weights alone, so that each weight's shape is
checked here. Results' shapes are ours too: torch's meta function would unroll a sequence of any length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from manyhands.programs.operators import infer, require
from manyhands.programs.operators.row import Arguments, Check, Flops, Row, row, rows

_MAX_LAYERS: Final = 64


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What the arguments of one call say: T steps of N samples of I features, H hidden, P visible."""

    steps: int
    samples: int
    features: int
    directions: int
    layers: int
    hidden: int
    visible: int

    def weights(self, gates: int, biases: bool) -> list[tuple[int, ...]]:
        """The shapes of all weights in order, layer by layer and direction by direction."""
        rows_ = gates * self.hidden
        shapes: list[tuple[int, ...]] = []
        for layer in range(self.layers):
            width = self.features if layer == 0 else self.visible * self.directions
            for _ in range(self.directions):
                shapes += [(rows_, width), (rows_, self.visible)]
                shapes += [(rows_,), (rows_,)] if biases else []
                shapes += [(self.visible, self.hidden)] if self.visible != self.hidden else []
        return shapes


def _sizes(a: Arguments) -> _Sizes:
    steps, samples, features = a["input"].shape
    if a["batch_first"]:
        steps, samples = samples, steps
    states = require.listed(a["hx"])
    directions = 2 if a["bidirectional"] else 1
    hidden, visible = states[-1].shape[2], states[0].shape[2]
    return _Sizes(steps, samples, features, directions, a["num_layers"], hidden, visible)


def _sequence(gates: int) -> Check:
    """Input ``(T, N, I)`` or batch first; states ``(layers x directions, N, H)``; weights as they follow."""

    def check(a: Arguments) -> str | None:
        states = require.listed(a["hx"])
        if a["input"].dim() != 3 or any(state.dim() != 3 for state in states):
            return "the input or a state does not have 3 dimensions"
        if len(states) != (2 if gates == 4 else 1):
            return f"{len(states)} states"
        if not 1 <= a["num_layers"] <= _MAX_LAYERS or not 0.0 <= a["dropout"] <= 1.0:
            return f"{a['num_layers']} layers with dropout {a['dropout']}"
        sizes = _sizes(a)
        if min(sizes.steps, sizes.samples, sizes.features, sizes.hidden, sizes.visible) < 1:
            return f"an empty dimension in {sizes}"
        return _states_problem(sizes, states) or _weights_problem(a, sizes, gates)

    return check


def _states_problem(sizes: _Sizes, states: Sequence[Tensor]) -> str | None:
    wide = sizes.layers * sizes.directions
    expected = [(wide, sizes.samples, sizes.visible), (wide, sizes.samples, sizes.hidden)]
    found = [tuple(state.shape) for state in states]
    return None if found == expected[: len(found)] else f"states of {found}, not {expected[: len(found)]}"


def _weights_problem(a: Arguments, sizes: _Sizes, gates: int) -> str | None:
    expected = sizes.weights(gates, a["has_biases"])
    found = [tuple(weight.shape) for weight in a["params"]]
    if found != expected:
        at = next(
            (i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None
        )
        if at is None:
            return f"{len(found)} weights, not {len(expected)}"
        return f"weight {at} is {found[at]}, not {expected[at]}"
    return require.floating("input", "hx", "params")(a)


def _flops(gates: int) -> Flops:
    def flops(a: Arguments, _results: list[Tensor]) -> int:
        sizes = _sizes(a)
        per_sample = sum(shape[0] * shape[1] for shape in sizes.weights(gates, False))
        return 2 * sizes.steps * sizes.samples * per_sample

    return flops


def _workspace(a: Arguments) -> int:
    """Gates, states and inputs of each step, which backward wants again."""
    sizes = _sizes(a)
    places = sizes.steps * sizes.samples * sizes.layers * sizes.directions
    return int(places * (8 * sizes.hidden + 2 * sizes.visible) * a["input"].element_size())


def _infer(a: Arguments) -> list[Tensor]:
    """Outputs ``(T, N, directions x P)`` as the input lies, and the last states."""
    sizes = _sizes(a)
    shape = [sizes.steps, sizes.samples] if not a["batch_first"] else [sizes.samples, sizes.steps]
    dtype: torch.dtype = a["input"].dtype
    output = infer.blank([*shape, sizes.visible * sizes.directions], dtype)
    return [output, *(infer.blank(state.shape, dtype) for state in require.listed(a["hx"]))]


def _cell(gates: int) -> Check:
    """Input ``(N, I)``, states ``(N, H)``, weights ``(gates x H, I)`` and ``(gates x H, H)``."""

    def check(a: Arguments) -> str | None:
        states = require.listed(a["hx"])
        own, tall = a["input"], a["w_ih"].shape[0]
        if len(states) != (2 if gates == 4 else 1) or tall % gates or own.dim() != 2:
            return f"{len(states)} states, an input of {own.dim()} dimensions"
        hidden = tall // gates
        found = [tuple(tensor.shape) for tensor in (*states, a["w_ih"], a["w_hh"])]
        expected = [(own.shape[0], hidden)] * len(states) + [(tall, own.shape[1]), (tall, hidden)]
        if found != expected or not all(require.vector(a[name], tall) for name in ("b_ih", "b_hh")):
            return f"states and weights of {found}, not {expected}"
        return require.floating("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh")(a)

    return check


def _cell_flops(a: Arguments, _results: list[Tensor]) -> int:
    return int(2 * a["input"].shape[0] * (a["w_ih"].numel() + a["w_hh"].numel()))


def _next_states(a: Arguments) -> Any:
    states = require.listed(a["hx"])
    made = [infer.blank(state.shape, state.dtype) for state in states]
    return made if len(made) > 1 else made[0]


_SEQUENCES: Final = {"lstm.input": 4, "gru.input": 3, "rnn_tanh.input": 1, "rnn_relu.input": 1}
_CELLS: Final = {"lstm_cell": 4, "gru_cell": 3, "rnn_tanh_cell": 1, "rnn_relu_cell": 1}

ROWS: Final[tuple[Row, ...]] = (
    *(
        row(key, _sequence(gates), flops=_flops(gates), workspace=_workspace, infer=_infer)
        for key, gates in _SEQUENCES.items()
    ),
    *(
        one
        for key, gates in _CELLS.items()
        for one in rows(key, _cell(gates), infer=_next_states, flops=_cell_flops)
    ),
)
