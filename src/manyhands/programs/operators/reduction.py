"""Along dimensions: sums, means, extremes, softmax, running sums, orderings."""

from __future__ import annotations

from math import log2
from typing import Final

import torch
from torch import Tensor

from manyhands.programs.operators import infer
from manyhands.programs.operators.row import Arguments, Row, row, rows


def _sorting(a: Arguments, _results: list[Tensor]) -> int:
    num_elements = a["self"].numel()
    return int(num_elements * max(log2(num_elements), 1)) if num_elements else 0


def _top(a: Arguments) -> str | None:
    """K lies within the dimension it is taken from."""
    own, dim = a["self"], a["dim"]
    if not -max(own.dim(), 1) <= dim < max(own.dim(), 1):
        return f"dim is {dim} of {own.dim()}"
    size = own.shape[dim] if own.dim() else 1
    return None if 0 <= a["k"] <= size else f"k is {a['k']} of {size}"


def _truth(dtype: torch.dtype) -> torch.dtype:
    """Any and all give bools, but for uint8, which stood for bool once."""
    return dtype if dtype == torch.uint8 else torch.bool


def _some_dim(a: Arguments) -> str | None:
    """An empty list of dimensions means none to these two, and all to every other reduction."""
    return "dim is empty" if a["dim"] == [] else None


def _int64(_dtype: torch.dtype) -> torch.dtype:
    return torch.int64


def _ordered(a: Arguments) -> list[Tensor]:
    """Values and their places."""
    own: Tensor = a["self"]
    shape = list(own.shape)
    if "k" in a and shape:
        shape[infer.wrapped(a["dim"], own.dim())] = a["k"]
    return [infer.blank(shape, own.dtype), infer.blank(shape, torch.int64)]


def _best(a: Arguments) -> list[Tensor]:
    shape = infer.reduced(a["self"].shape, a["dim"], a["keepdim"])
    return [infer.blank(shape, a["self"].dtype), infer.blank(shape, torch.int64)]


def _cumulated(a: Arguments) -> Tensor:
    return infer.blank(a["self"].shape, a["dtype"] or infer.summed(a["self"].dtype))


def _softened(a: Arguments) -> Tensor:
    return infer.blank(a["self"].shape, a["dtype"] or a["self"].dtype)


def _places(a: Arguments) -> Tensor:
    return infer.blank(a["self"].shape, torch.int64)


ROWS: Final[tuple[Row, ...]] = (
    *rows("sum sum.dim_IntList nansum prod prod.dim_int", infer=infer.along(infer.summed)),
    *rows("mean mean.dim nanmean", infer=infer.along()),
    *rows("var var.dim var.correction std std.dim std.correction", infer=infer.along()),
    *rows("var_mean.correction aminmax", infer=infer.along(count=2)),
    *rows("amax amin max min", infer=infer.along()),
    *rows("max.dim min.dim", infer=_best),
    *rows("argmax argmin count_nonzero count_nonzero.dim_IntList", infer=infer.along(_int64)),
    *rows("any any.dim all all.dim", infer=infer.along(_truth)),
    *rows("any.dims all.dims", _some_dim, infer=infer.along(_truth)),
    row("logsumexp.default", infer=infer.along(infer.floated)),
    *rows("norm.Scalar norm.ScalarOpt_dim linalg_vector_norm", infer=infer.along(), infinite=("p", "ord")),
    *rows("softmax.int log_softmax.int special_softmax special_log_softmax", infer=_softened),
    *rows("cumsum cumprod", infer=_cumulated),
    *rows("cummax cummin", infer=_ordered),
    *rows("logcumsumexp renorm", infer=infer.same()),
    *rows("sort sort.stable", infer=_ordered, flops=_sorting),
    *rows("argsort argsort.stable", infer=_places, flops=_sorting),
    row("topk.default", _top, infer=_ordered, flops=_sorting),
)
