"""Random numbers, from torch's default generator, which is seeded before each micro-batch."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from manyhands.programs.operators import infer, require
from manyhands.programs.operators.row import Arguments, Row, row, rows

_PROBABILITY: Final = require.between("p", 0.0, 1.0)
_SIZE: Final = require.sizes("size")


def _range(a: Arguments) -> str | None:
    low = a.get("low", 0)
    return None if low < a["high"] else f"no integers lie in [{low}, {a['high']})"


def _sized(default: torch.dtype) -> infer.Infer:
    return lambda a: infer.blank(a["size"], a["dtype"] or default)


def _alike(a: Arguments) -> Tensor:
    return infer.blank(a["self"].shape, a["dtype"] or a["self"].dtype)


def _itself(a: Arguments) -> Tensor:
    written: Tensor = a["self"]
    return written


def _shuffled(a: Arguments) -> Tensor:
    return infer.blank([a["n"]], a["dtype"] or torch.int64)


ROWS: Final[tuple[Row, ...]] = (
    *rows(
        "dropout feature_dropout alpha_dropout feature_alpha_dropout", _PROBABILITY, infer=infer.same("input")
    ),
    row("dropout_.default", _PROBABILITY, infer=_itself),
    row("bernoulli.p", _PROBABILITY, infer=infer.same()),
    row("bernoulli.default", infer=infer.same()),
    *rows("rand randn", _SIZE, infer=_sized(torch.float32)),
    *rows("rand_like randn_like", infer=_alike),
    *rows("randint randint.low", _SIZE, _range, infer=_sized(torch.int64)),
    *rows("randint_like randint_like.low_dtype", _range, infer=_alike),
    row("randperm.default", lambda a: require.size_problem([a["n"]]), infer=_shuffled),
)
