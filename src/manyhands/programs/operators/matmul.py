"""Products of matrices, and what is made of them."""

from __future__ import annotations

from math import prod
from typing import Final

from torch import Tensor

from manyhands.programs.operators import infer, require
from manyhands.programs.operators.row import Arguments, Flops, Row, row

_MAX_OPERANDS: Final = 8


def _product(left: str) -> Flops:
    """Two operations for each result and each step along the last dimension of `left`."""

    def flops(a: Arguments, results: list[Tensor]) -> int:
        shape = a[left].shape
        return 2 * results[0].numel() * (shape[-1] if len(shape) else 1)

    return flops


def _letters(a: Arguments) -> tuple[list[str], str]:
    inputs, output = a["equation"].split("->")
    return inputs.split(","), output


def _letter_sizes(a: Arguments) -> dict[str, int]:
    inputs, _ = _letters(a)
    return {
        letter: int(size)
        for term, tensor in zip(inputs, a["tensors"], strict=True)
        for letter, size in zip(term, tensor.shape, strict=True)
    }


def _einsum(a: Arguments) -> str | None:
    """Each operand has as many dimensions as letters, and a letter one size wherever it stands."""
    inputs, output = _letters(a)
    tensors = a["tensors"]
    if not 1 <= len(tensors) == len(inputs) <= _MAX_OPERANDS:
        return f"{len(inputs)} terms for {len(tensors)} operands; at most {_MAX_OPERANDS} are allowed"
    sizes: dict[str, int] = {}
    for term, tensor in zip(inputs, tensors, strict=True):
        if len(term) != tensor.dim():
            return f"term {term!r} for a tensor of {tensor.dim()} dimensions"
        for letter, size in zip(term, tensor.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                return f"{letter!r} is {sizes[letter]} and {size}"
    if len(set(output)) != len(output) or not set(output) <= set(sizes):
        return f"the output {output!r} repeats a letter or has one of its own"
    return "a path is not taken" if a["path"] is not None else None


def _einsum_flops(a: Arguments, _results: list[Tensor]) -> int:
    inputs, _ = _letters(a)
    sizes = _letter_sizes(a)
    return 2 * len(inputs) * prod(sizes.values())


def _einsum_workspace(a: Arguments) -> int:
    # Pairs are contracted from the left, each into a matrix product of at most all letters that are left.
    tensors: list[Tensor] = a["tensors"]
    if len(tensors) < 3:
        return 2 * sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    inputs, output = _letters(a)
    sizes = _letter_sizes(a)
    total = 0
    for at in range(2, len(inputs)):
        seen, needed = set("".join(inputs[:at])), set("".join(inputs[at:]) + output)
        total += prod(sizes[letter] for letter in seen & needed) * tensors[0].element_size()
    return total


def _bilinear_flops(a: Arguments, results: list[Tensor]) -> int:
    return int(2 * results[0].numel() * a["input1"].shape[-1] * a["input2"].shape[-1])


def _bilinear(a: Arguments) -> str | None:
    """The weight is (out, in1, in2) for inputs that end so."""
    one, two, weight = a["input1"], a["input2"], a["weight"]
    if weight.dim() != 3 or not one.dim() or not two.dim():
        return f"weight has {weight.dim()} dimensions, not 3"
    if one.shape[:-1] != two.shape[:-1] or weight.shape[1:] != (one.shape[-1], two.shape[-1]):
        return f"inputs {tuple(one.shape)} and {tuple(two.shape)} for a weight of {tuple(weight.shape)}"
    return None if require.vector(a["bias"], weight.shape[0]) else "the bias is not as long as the weight"


def _distance_flops(a: Arguments, results: list[Tensor]) -> int:
    return int(3 * results[0].numel() * a["x1"].shape[-1])


def _agree(one: int, two: int) -> None:
    if one != two:
        raise ValueError(f"a length of {one} meets a length of {two}")


def _times(own: Tensor, other: Tensor) -> Tensor:
    """Numpy's matmul: vectors are rows on the left and columns on the right, batches broadcast."""
    if not own.dim() or not other.dim():
        raise ValueError("a product of scalars")
    if own.dtype != other.dtype:
        raise ValueError(f"a product of {own.dtype} and {other.dtype}")
    _agree(own.shape[-1], other.shape[-2] if other.dim() > 1 else other.shape[0])
    batch = infer.broadcast(own.shape[:-2], other.shape[:-2])
    return infer.blank([*batch, *own.shape[-2:-1], *(other.shape[-1:] if other.dim() > 1 else ())], own.dtype)


def _product_of(left: str, right: str, *ranks: int) -> infer.Infer:
    """The product of two matrices, or batches of them, with just so many dimensions each."""

    def result(a: Arguments) -> Tensor:
        own, other = a[left], a[right]
        if ranks and (own.dim(), other.dim()) != ranks:
            raise ValueError(f"{own.dim()} and {other.dim()} dimensions, not {ranks[0]} and {ranks[1]}")
        if ranks == (3, 3):
            _agree(own.shape[0], other.shape[0])
        return _times(own, other)

    return result


def _added_to(left: str, right: str, *ranks: int) -> infer.Infer:
    """A product, to which `self` is broadcast."""
    product = _product_of(left, right, *ranks)

    def result(a: Arguments) -> Tensor:
        made: Tensor = product(a)
        if infer.broadcast(a["self"].shape, made.shape) != list(made.shape):
            raise ValueError(f"{tuple(a['self'].shape)} does not stretch to {tuple(made.shape)}")
        if not made.numel() and a["self"].shape != made.shape:  # addmv gives the shape of `self` then
            raise ValueError(
                f"{tuple(a['self'].shape)} is not stretched to {tuple(made.shape)}, which is empty"
            )
        return made

    return result


def _batch_sum(a: Arguments) -> Tensor:
    made = _product_of("batch1", "batch2", 3, 3)(a)
    return infer.blank(made.shape[1:], made.dtype)


def _dot(a: Arguments) -> Tensor:
    made: Tensor = _product_of("self", "tensor", 1, 1)(a)
    return made


def _inner(a: Arguments) -> Tensor:
    own, other = a["self"], a["other"]
    if own.dtype != other.dtype:
        raise ValueError(
            f"a product of {own.dtype} and {other.dtype}"
        )  # which a number among them would hide
    if not own.dim() or not other.dim():
        return infer.blank(infer.broadcast(own.shape, other.shape), own.dtype)
    _agree(own.shape[-1], other.shape[-1])
    return infer.blank([*own.shape[:-1], *other.shape[:-1]], own.dtype)


def _outer(one: str, two: str) -> infer.Infer:
    def result(a: Arguments) -> Tensor:
        if (a[one].dim(), a[two].dim()) != (1, 1):
            raise ValueError("an outer product takes two vectors")
        dtype = infer.promoted(*(value for value in a.values() if isinstance(value, Tensor)))
        return infer.blank([a[one].shape[0], a[two].shape[0]], dtype)

    return result


def _linear(a: Arguments) -> Tensor:
    own, weight = a["input"], a["weight"]
    if weight.dim() not in (1, 2) or not own.dim() or (weight.dim() == 1 and a["bias"] is not None):
        raise ValueError(f"input {tuple(own.shape)} and weight {tuple(weight.shape)}")
    _agree(own.shape[-1], weight.shape[-1])
    if a["bias"] is not None and tuple(a["bias"].shape) not in ((weight.shape[0],), (1,), ()):
        raise ValueError(f"bias {tuple(a['bias'].shape)} for {weight.shape[0]} outputs")
    return infer.blank([*own.shape[:-1], *weight.shape[:-1]], own.dtype)


def _bilinear_result(a: Arguments) -> Tensor:
    return infer.blank([*a["input1"].shape[:-1], a["weight"].shape[0]], a["input1"].dtype)


def _einsum_result(a: Arguments) -> Tensor:
    sizes, (_, output) = _letter_sizes(a), _letters(a)
    return infer.blank([sizes[letter] for letter in output], a["tensors"][0].dtype)


def _contracted(a: Arguments) -> Tensor:
    own, other = a["self"], a["other"]
    mine = [infer.wrapped(dim, own.dim()) for dim in a["dims_self"]]
    theirs = [infer.wrapped(dim, other.dim()) for dim in a["dims_other"]]
    if len(mine) != len(theirs):
        raise ValueError(f"{len(mine)} dimensions meet {len(theirs)}")
    for one, two in zip(mine, theirs, strict=True):
        _agree(own.shape[one], other.shape[two])
    left = [size for dim, size in enumerate(own.shape) if dim not in mine]
    return infer.blank(
        [*left, *(size for dim, size in enumerate(other.shape) if dim not in theirs)], own.dtype
    )


def _distances(a: Arguments) -> Tensor:
    one, two = a["x1"], a["x2"]
    if one.dim() < 2 or two.dim() < 2:
        raise ValueError("distances are between rows of matrices")
    _agree(one.shape[-1], two.shape[-1])
    batch = infer.broadcast(one.shape[:-2], two.shape[:-2])
    return infer.blank([*batch, one.shape[-2], two.shape[-2]], one.dtype)


def _similarity(a: Arguments) -> Tensor:
    shape = infer.broadcast(a["x1"].shape, a["x2"].shape)
    return infer.blank(infer.reduced(shape, a["dim"], False), infer.promoted(a["x1"], a["x2"]))


def _pairwise(a: Arguments) -> Tensor:
    shape = infer.broadcast(a["x1"].shape, a["x2"].shape)
    return infer.blank(infer.reduced(shape, -1, a["keepdim"]), infer.promoted(a["x1"], a["x2"]))


_VECTORS: Final = require.floating("x1", "x2")

ROWS: Final[tuple[Row, ...]] = (
    row("mm.default", infer=_product_of("self", "mat2", 2, 2), flops=_product("self")),
    row("bmm.default", infer=_product_of("self", "mat2", 3, 3), flops=_product("self")),
    row("matmul.default", infer=_product_of("self", "other"), flops=_product("self")),
    row("mv.default", infer=_product_of("self", "vec", 2, 1), flops=_product("self")),
    row("dot.default", infer=_dot, flops=_product("self")),
    row("inner.default", infer=_inner, flops=_product("self")),
    row("outer.default", infer=_outer("self", "vec2")),
    row("addmm.default", infer=_added_to("mat1", "mat2", 2, 2), flops=_product("mat1")),
    row("addmv.default", infer=_added_to("mat", "vec", 2, 1), flops=_product("mat")),
    row("baddbmm.default", infer=_added_to("batch1", "batch2", 3, 3), flops=_product("batch1")),
    row(
        "addbmm.default",
        infer=_batch_sum,
        flops=lambda a, _r: 2 * a["batch1"].numel() * a["batch2"].shape[-1],
    ),
    row("addr.default", infer=_outer("vec1", "vec2")),
    row("linear.default", infer=_linear, flops=_product("input")),
    row("bilinear.default", _bilinear, infer=_bilinear_result, flops=_bilinear_flops),
    row("einsum.default", _einsum, infer=_einsum_result, flops=_einsum_flops, workspace=_einsum_workspace),
    row(
        "tensordot.default", infer=_contracted, flops=lambda a, _r: 2 * a["self"].numel() * a["other"].numel()
    ),
    row("cdist.default", _VECTORS, infer=_distances, flops=_distance_flops, infinite=("p",)),
    row("cosine_similarity.default", _VECTORS, infer=_similarity),
    row("pairwise_distance.default", _VECTORS, infer=_pairwise, infinite=("p",)),
)
