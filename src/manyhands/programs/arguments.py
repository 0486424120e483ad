"""One argument of a node against the parameter it stands for: its type, its bounds, what it refers to.

Types are compared exactly: True is no int here, and 1 no bool. Of the values made so far only their kind is known;
shapes come with the dry run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from manyhands.errors import ProgramRefused
from manyhands.programs.format import MAX_INT, Argument, Dtype, Equation, Items, MemoryFormat, Ref, Word
from manyhands.programs.operators import row as operators
from manyhands.programs.operators.row import Kind, Parameter, Result

Made = tuple[Result, int | None]
"""What is known of a value before shapes are: its kind, and how many tensors it is where that is fixed."""

_ITEM_KINDS: Final = {
    Kind.TENSORS: Kind.TENSOR,
    Kind.MAYBE_TENSORS: Kind.TENSOR,
    Kind.INTS: Kind.INT,
    Kind.FLOATS: Kind.FLOAT,
}
_NUMERIC: Final = frozenset({Kind.INT, Kind.SCALAR, Kind.FLOAT})
_TYPES: Final[dict[Kind, tuple[type, ...]]] = {
    Kind.TENSOR: (),
    Kind.INT: (int,),
    Kind.SCALAR: (bool, int, float),
    Kind.FLOAT: (int, float),
    Kind.BOOL: (bool,),
    Kind.DTYPE: (Dtype,),
    Kind.MEMORY_FORMAT: (MemoryFormat,),
    Kind.WORD: (Word,),
    Kind.EQUATION: (Equation,),
}


def problem(parameter: Parameter, argument: Argument, values: Sequence[Made]) -> str | None:
    """Why `argument` may not stand for `parameter`."""
    if argument is None:
        return None if parameter.optional else f"null where {parameter.kind.value} is wanted"
    if type(argument) is Ref and parameter.kind is Kind.TENSOR and _is_tensor(argument, values):
        return None
    item_kind = _ITEM_KINDS.get(parameter.kind)
    if item_kind is None:
        if parameter.number and not isinstance(argument, Ref):
            return _atom_problem(parameter, Kind.SCALAR, argument, values)
        return _atom_problem(parameter, parameter.kind, argument, values)
    if isinstance(argument, Ref) and parameter.kind is Kind.TENSORS:
        return _whole_problem(argument, values)
    if not isinstance(argument, Items):
        return f"{_text(argument)} where {parameter.kind.value} is wanted"
    for item in argument.items:
        if item is None and parameter.kind is Kind.MAYBE_TENSORS:
            continue
        if type(item) is Ref and item_kind is Kind.TENSOR and _is_tensor(item, values):
            continue
        if found := _atom_problem(parameter, item_kind, item, values):
            return found
    return None


def _is_tensor(ref: Ref, values: Sequence[Made]) -> bool:
    """The usual case, told apart quickly: a reference back to one tensor."""
    return ref.element is None and ref.value < len(values) and values[ref.value][0] is Result.TENSOR


def _atom_problem(parameter: Parameter, kind: Kind, argument: Any, values: Sequence[Made]) -> str | None:
    if type(argument) is Ref:
        either = (Kind.TENSOR, Kind.SCALAR) if parameter.number else (kind,)
        try:
            check_reference(argument, values, *either)
        except ProgramRefused as refusal:
            return str(refusal)
        return None
    if type(argument) not in _TYPES[kind]:
        return f"{_text(argument)} where {kind.value} is wanted"
    if type(argument) is int:
        largest = MAX_INT if parameter.unbounded or kind is Kind.SCALAR else operators.MAX_INT
        return None if -largest - 1 <= argument <= largest else f"{argument} is beyond {largest}"
    if type(argument) is float and not math.isfinite(argument):
        is_allowed = parameter.infinite and math.isinf(argument)
        return None if is_allowed else f"{argument} is not a finite number"
    return None


def check_reference(ref: Ref, values: Sequence[Made], *kinds: Kind) -> None:
    """ProgramRefused unless `ref` names an earlier value of one of `kinds`, and an element where there are several."""
    if ref.value >= len(values):
        raise ProgramRefused(f"value {ref.value} is referred to before it is made ({len(values)} are)")
    result, count = values[ref.value]
    if result is Result.NUMBER:
        if ref.element is not None or not _NUMERIC.intersection(kinds):
            raise ProgramRefused(f"value {ref.value} is a number where {kinds[0].value} is wanted")
        return
    if Kind.TENSOR not in kinds:
        raise ProgramRefused(f"value {ref.value} is {result.value} where {kinds[0].value} is wanted")
    if (ref.element is not None) != (result is Result.TENSORS):
        raise ProgramRefused(
            f"value {ref.value} is {result.value}, and element {ref.element} of it is referred to"
        )
    if ref.element is not None and count is not None and ref.element >= count:
        raise ProgramRefused(
            f"value {ref.value} is {count} tensors, and element {ref.element} is referred to"
        )


def _whole_problem(ref: Ref, values: Sequence[Made]) -> str | None:
    """Why `ref` may not stand for a list of tensors: all results of an operator, at once."""
    if ref.value >= len(values):
        return f"value {ref.value} is referred to before it is made ({len(values)} are)"
    is_list = values[ref.value][0] is Result.TENSORS and ref.element is None
    return None if is_list else f"value {ref.value} is not a list of tensors"


def _text(argument: object) -> str:
    name = argument.__class__.__name__
    return f"{argument!r:.40} ({name})" if isinstance(argument, bool | int | float) else f"a {name}"
