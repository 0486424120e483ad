"""Arithmetic on sizes: what a batch's size makes of the graph's other sizes.

Plain Python on ints; no result may grow beyond 2^40 or divide by zero, and bools are no ints.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor

from manyhands.programs.operators.row import MAX_INT, Arguments, Kind, Parameter, Result, Row


def _size(tensor: Tensor, dim: int) -> int:
    return int(tensor.shape[dim])


def _dim(a: Arguments) -> str | None:
    own: Tensor = a["self"]
    return None if -own.dim() <= a["dim"] < own.dim() else f"dim is {a['dim']} of {own.dim()}"


def _divisor(a: Arguments) -> str | None:
    return "the divisor is 0" if a["b"] == 0 else None


def _bounded(a: Arguments) -> str | None:
    """Products of what passed stay below 2^80, so that no intermediate number is ever long."""
    large = [value for value in a.values() if abs(value) > MAX_INT]
    return f"an int grows beyond {MAX_INT}" if large else None


def _arithmetic(name: str, call: Callable[..., Any], *names: str, divides: bool = False) -> Row:
    parameters = tuple(Parameter(each, Kind.INT) for each in names)
    checks = (_bounded, _divisor) if divides else (_bounded,)
    return Row(f"int.{name}", call, parameters, Result.NUMBER, checks=checks)


ROWS: Final[tuple[Row, ...]] = (
    Row(
        "sym_size.int",
        _size,
        (Parameter("self", Kind.TENSOR), Parameter("dim", Kind.INT)),
        Result.NUMBER,
        checks=(_dim,),
    ),
    Row("sym_numel.default", lambda tensor: tensor.numel(), (Parameter("self", Kind.TENSOR),), Result.NUMBER),
    _arithmetic("add", operator.add, "a", "b"),
    _arithmetic("sub", operator.sub, "a", "b"),
    _arithmetic("mul", operator.mul, "a", "b"),
    _arithmetic("floordiv", operator.floordiv, "a", "b", divides=True),
    _arithmetic("mod", operator.mod, "a", "b", divides=True),
    _arithmetic("truediv", operator.truediv, "a", "b", divides=True),
    _arithmetic("neg", operator.neg, "a"),
    _arithmetic("min", min, "a", "b"),
    _arithmetic("max", max, "a", "b"),
)
