"""Reading and writing by index. Values out of range are the kernels' own to refuse: each raises IndexError."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from manyhands.programs.operators import infer, require
from manyhands.programs.operators.row import Arguments, Row, row, rows


def _embedding(a: Arguments) -> str | None:
    if a["sparse"] or a["scale_grad_by_freq"]:
        return "sparse or frequency-scaled gradients are not taken"
    rows_ = a["weight"].shape[0] if a["weight"].dim() == 2 else 0
    if not -1 <= a["padding_idx"] < rows_:
        return f"a weight of {tuple(a['weight'].shape)} with padding_idx {a['padding_idx']}"
    return require.indices("indices")(a)


def _by_tensors(a: Arguments) -> str | None:
    """Whole numbers only: how many elements a mask picks is not known before it runs."""
    given = require.listed(a["indices"])
    if not given or len(a["indices"]) > a["self"].dim():
        return f"{len(given)} indices for {a['self'].dim()} dimensions"
    dtypes = {index.dtype for index in given}
    if not dtypes <= {torch.int64, torch.int32}:
        return f"indices are {require.text_of(dtypes)}, not int64 or int32"
    return None


def _one_hot(a: Arguments) -> str | None:
    return None if a["num_classes"] >= 1 else "the number of classes would depend on the data"


def _same_rank(a: Arguments) -> str | None:
    """Self and index, and a source where there is one, have one number of dimensions."""
    ranks = {max(a[name].dim(), 1) for name in ("self", "index", "src") if name in a}
    return None if len(ranks) == 1 else f"self, index and source have {sorted(ranks)} dimensions"


def _looked_up(a: Arguments) -> Tensor:
    return infer.blank([*a["indices"].shape, a["weight"].shape[1]], a["weight"].dtype)


def _picked(a: Arguments) -> Tensor:
    """Numpy's rule: neighbouring index tensors stand in their own place, parted ones go to the front."""
    own: Tensor = a["self"]
    at = [dim for dim, index in enumerate(a["indices"]) if index is not None]
    shape = infer.broadcast(*(a["indices"][dim].shape for dim in at))
    kept = [size for dim, size in enumerate(own.shape) if dim not in at]
    front = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    return infer.blank([*kept[:front], *shape, *kept[front:]], own.dtype)


def _selected(a: Arguments) -> Tensor:
    own, index = a["self"], a["index"]
    dim = infer.wrapped(a["dim"], own.dim())
    if index.dim() > 1:
        raise ValueError(f"an index of {index.dim()} dimensions")
    return infer.blank([index.numel() if at == dim else size for at, size in enumerate(own.shape)], own.dtype)


def _gathered(a: Arguments) -> Tensor:
    return infer.blank(a["index"].shape, a["self"].dtype)


def _taken(a: Arguments) -> Tensor:
    """Along `dim` as long as the indices, elsewhere broadcast; without `dim` as long as the flat indices."""
    own, indices = a["self"], a["indices"]
    if a["dim"] is None:
        return infer.blank([indices.numel()], own.dtype)
    if own.dim() != indices.dim():
        raise ValueError(f"{own.dim()} dimensions and indices of {indices.dim()}")
    dim = infer.wrapped(a["dim"], own.dim())
    mine, theirs = list(own.shape), list(indices.shape)
    length, mine[dim], theirs[dim] = theirs[dim], 1, 1
    shape = infer.broadcast(mine, theirs)
    shape[dim] = length
    return infer.blank(shape, own.dtype)


def _spread(a: Arguments) -> Tensor:
    return infer.blank([*a["self"].shape, a["num_classes"]], torch.int64)


def _written(a: Arguments) -> Tensor:
    written: Tensor = a["self"]
    return written


_INT64: Final = require.indices("index")
_LIKE_SELF: Final = infer.same()

ROWS: Final[tuple[Row, ...]] = (
    row("embedding.default", _embedding, infer=_looked_up),
    row("index.Tensor", _by_tensors, infer=_picked),
    row("index_put.default", _by_tensors, infer=_LIKE_SELF),
    row("index_put_.default", _by_tensors, infer=_written),
    row("index_select.default", _INT64, infer=_selected),
    *rows("index_add index_copy index_fill.int_Scalar", _INT64, infer=_LIKE_SELF),
    row("index_add_.default", _INT64, infer=_written),
    row("gather.default", _INT64, _same_rank, infer=_gathered),
    *rows("scatter.src scatter.value scatter_add", _INT64, _same_rank, infer=_LIKE_SELF),
    *rows("scatter_.value scatter_add_", _INT64, _same_rank, infer=_written),
    row("take_along_dim.default", require.indices("indices"), infer=_taken),
    row("one_hot.default", _one_hot, infer=_spread),
)
