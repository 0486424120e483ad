"""Element by element: arithmetic, activations, comparisons, masks; new tensors and in place."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from manyhands.programs.operators import infer, require
from manyhands.programs.operators.row import Arguments, Row, row, rows


def _no_trap(a: Arguments) -> str | None:
    """Whole numbers rounded towards zero are divided by a number only, which fits their dtype and is not 0 or -1.

    The most negative int over -1 raises SIGFPE on x86 there; ATen guards floor, remainder and fmod, not trunc.
    """
    own, other = a["self"], a["other"]
    dtypes = {tensor.dtype for tensor in (own, other) if isinstance(tensor, Tensor)}
    if a["rounding_mode"] != "trunc" or isinstance(other, float) or not all(map(require.is_integral, dtypes)):
        return None
    if isinstance(other, Tensor):
        return "whole numbers rounded towards zero may be divided by a number, not by a tensor"
    limits = torch.iinfo(torch.uint8 if own.dtype == torch.bool else own.dtype)
    return None if other not in (0, -1) and limits.min <= other <= limits.max else f"{own.dtype} over {other}"


def _quotient(a: Arguments) -> Tensor:
    """As an ordinary pair; a quotient that is not rounded is floating."""
    made: Tensor = _QUOTIENT(a) if a["rounding_mode"] is None else _PAIR(a)
    return made


def _chosen(a: Arguments) -> Tensor:
    shapes = [value.shape for value in a.values() if isinstance(value, Tensor)]
    return infer.blank(infer.broadcast(*shapes), infer.promoted(a["self"], a["other"]))


def _scalar_choice(a: Arguments) -> Tensor:
    """`where` between two numbers: their promoted type, in default precision."""
    return infer.blank(a["condition"].shape, infer.promoted(a["self"], a["other"]))


def _filled(a: Arguments) -> Tensor:
    return infer.blank(infer.broadcast(a["self"].shape, a["mask"].shape), a["self"].dtype)


def _interpolated(a: Arguments) -> Tensor:
    shapes = [value.shape for value in a.values() if isinstance(value, Tensor)]
    return infer.blank(infer.broadcast(*shapes), a["self"].dtype)


def _gated(a: Arguments) -> Tensor:
    own: Tensor = a["self"]
    dim = infer.wrapped(a["dim"], own.dim())
    if not own.dim() or own.shape[dim] % 2:
        raise ValueError(f"a gate halves dimension {dim} of {tuple(own.shape)}")
    return infer.blank([size // 2 if at == dim else size for at, size in enumerate(own.shape)], own.dtype)


def _squared(dtype: torch.dtype) -> torch.dtype:
    return torch.int64 if dtype == torch.bool else dtype


def _double(_dtype: torch.dtype) -> torch.dtype:
    return torch.float64


_SAME: Final = """
    abs absolute neg negative positive sign sgn floor ceil round trunc frac
    log_sigmoid relu relu6 silu gelu selu celu elu leaky_relu mish hardtanh hardswish hardsigmoid
    softplus softshrink hardshrink threshold prelu bitwise_not nan_to_num
"""
_TO_FLOAT: Final = """
    exp exp2 expm1 log log1p log2 log10 sqrt rsqrt reciprocal
    sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh sinc
    erf erfc erfinv special_erf special_expit special_logit lgamma digamma sigmoid logit deg2rad rad2deg
"""
_TO_BOOL: Final = "logical_not isnan isinf isfinite isposinf isneginf"
_UNARY_IN_PLACE: Final = """
    abs_ neg_ exp_ log_ sqrt_ rsqrt_ reciprocal_ square_ tanh_ floor_ ceil_ round_
    sigmoid_ relu_ relu6_ silu_ gelu_ selu_ celu_ elu_ leaky_relu_ mish_ hardtanh_ hardswish_ hardsigmoid_
    threshold_ zero_
"""
_BINARY: Final = """
    add.Tensor add.Scalar sub.Tensor sub.Scalar mul.Tensor mul.Scalar subtract.Tensor multiply.Tensor
    rsub.Tensor rsub.Scalar maximum minimum fmax fmin max.other min.other hypot logaddexp logaddexp2
    bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor
"""
# What Python's & | ^ on tensors are called; the underscores are Python's, not a mark of a private operator.
_DUNDERS: Final = "__and__.Tensor __or__.Tensor __xor__.Tensor"
_QUOTIENTS: Final = "div.Tensor div.Scalar divide.Tensor true_divide.Tensor atan2 xlogy.Tensor"
_POWERS: Final = "pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar"
_COMPARISONS: Final = """
    eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar
    gt.Tensor gt.Scalar ge.Tensor ge.Scalar logical_and logical_or logical_xor
"""
_BINARY_IN_PLACE: Final = """
    add_.Tensor add_.Scalar sub_.Tensor sub_.Scalar mul_.Tensor mul_.Scalar div_.Tensor div_.Scalar
    pow_.Scalar addcmul_ addcdiv_ copy_ lerp_.Scalar
    logical_and_ logical_or_ bitwise_and_.Tensor bitwise_or_.Tensor __iand__.Tensor __ior__.Tensor
"""
_DIVISIONS: Final = (
    "floor_divide floor_divide.Scalar remainder.Tensor remainder.Scalar fmod.Tensor fmod.Scalar"
)
_QUOTIENT: Final = infer.elementwise("self", "other", gives=infer.floated)
_PAIR: Final = infer.elementwise("self", "other")
_NUMBER: Final = ("other",)

ROWS: Final[tuple[Row, ...]] = (
    *rows(_SAME, infer=infer.same()),
    *rows(_TO_FLOAT, infer=infer.elementwise("self", gives=infer.floated)),
    *rows(_TO_BOOL, infer=infer.elementwise("self", gives=infer.boolean)),
    *rows(_UNARY_IN_PLACE, infer=infer.itself),
    row("square.default", infer=infer.elementwise("self", gives=_squared)),
    row("glu.default", infer=_gated),
    *rows(_BINARY, infer=_PAIR, numbers=_NUMBER),
    *rows(_DUNDERS, infer=_PAIR, numbers=_NUMBER),
    *rows(_QUOTIENTS, infer=_QUOTIENT, numbers=_NUMBER),
    *rows(
        _COMPARISONS,
        infer=infer.elementwise("self", "other", gives=infer.boolean),
        infinite=_NUMBER,
        numbers=_NUMBER,
    ),
    *rows(_POWERS, infer=infer.elementwise("self", "exponent"), numbers=("exponent",)),
    row("float_power.Tensor_Scalar", infer=infer.elementwise("self", gives=_double)),
    *rows(_BINARY_IN_PLACE, infer=infer.itself, numbers=_NUMBER),
    *rows("div.Tensor_mode div.Scalar_mode", _no_trap, infer=_quotient, numbers=_NUMBER),
    *rows(_DIVISIONS, infer=_PAIR, numbers=_NUMBER),
    *rows("lerp.Scalar lerp.Tensor", infer=_interpolated),
    *rows("addcmul addcdiv", infer=infer.elementwise("self", "tensor1", "tensor2")),
    *rows("clamp clip clamp.Tensor", infer=infer.elementwise("self", "min", "max"), infinite=("min", "max")),
    row("clamp_min.default", infer=infer.elementwise("self", "min"), infinite=("min",)),
    row("clamp_max.default", infer=infer.elementwise("self", "max"), infinite=("max",)),
    *rows("clamp_ clip_ clamp_min_ clamp_max_", infer=infer.itself, infinite=("min", "max")),
    *rows("masked_fill.Scalar masked_fill.Tensor", infer=_filled, infinite=("value",)),
    *rows("masked_fill_.Scalar masked_fill_.Tensor", infer=infer.itself, infinite=("value",)),
    *rows("fill_.Scalar fill_.Tensor", infer=infer.itself, infinite=("value",)),
    row("where.Scalar", infer=_scalar_choice, infinite=("self", "other")),
    *rows(
        "where.self where.ScalarOther where.ScalarSelf",
        infer=_chosen,
        infinite=("self", "other"),
    ),
)
