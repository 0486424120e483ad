"""Recurrent operators while tracing: results of the right shape, without running over the sequence.

Torch knows the shape of an LSTM's result only by stepping through it in Python, which fixes the length of the
sequence in the trace. Here the shapes are said outright, so that the length may vary. The traced operator is
the same; nothing but shapes is computed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

_LSTM: Final = torch.ops.aten.lstm.input
_OTHERS: Final = (torch.ops.aten.gru.input, torch.ops.aten.rnn_tanh.input, torch.ops.aten.rnn_relu.input)
_DECOMPOSITIONS: Final = (torch._C.DispatchKey.CompositeImplicitAutograd, torch._C.DispatchKey.Autograd)
"""Under which torch keeps the Python that steps; kernels for real tensors stand elsewhere."""


@contextmanager
def open_lengths() -> Iterator[None]:
    """Meanwhile the length of a sequence is no number that LSTM, GRU and RNN look at under a tracer."""
    originals = [(operator, dict(operator.py_kernels)) for operator in (_LSTM, *_OTHERS)]
    try:
        for operator, _ in originals:
            _replace(operator, dict.fromkeys(_DECOMPOSITIONS, _lstm if operator is _LSTM else _rnn))
        yield
    finally:
        for operator, kernels in originals:
            _replace(operator, kernels)


def _replace(operator: Any, kernels: dict[Any, Any]) -> None:
    operator.py_kernels.update(kernels)
    operator._dispatch_cache.clear()


def _lstm(steps: Tensor, hidden: list[Tensor], *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``(output, h, c)``: `hidden` is ``(layers * directions, batch, size)`` each."""
    return _output(steps, hidden[0], options), torch.empty_like(hidden[0]), torch.empty_like(hidden[1])


def _rnn(steps: Tensor, hidden: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return _output(steps, hidden, options), torch.empty_like(hidden)


def _output(steps: Tensor, hidden: Tensor, options: tuple[Any, ...]) -> Tensor:
    """Both orders of time and batch keep theirs; after weights: biases, layers, dropout, train, directions."""
    is_bidirectional = options[5]
    return steps.new_empty((*steps.shape[:-1], hidden.shape[-1] * (2 if is_bidirectional else 1)))
