"""A row of the table: one ATen forward overload, what its arguments must be, and what it costs.

The kinds of the parameters are read from torch's own schema when this package is imported, so that they
cannot drift from it; which overloads exist is written out by hand, file by file, and nothing received is ever
looked up anywhere but in the finished table. A row's checks are ours: they see concrete shapes and dtypes (of
tensors on the meta device) and run before the operator does, because several kernels trust their caller.

Knows nothing of programs, bytes or graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import torch
from torch import Tensor

MAX_INT: Final = 1 << 40
"""No size, dimension or step of a real model is larger; ints in a graph may not grow beyond it."""
MAX_RESULTS: Final = 512
MAX_RANK: Final = 8

Arguments = Mapping[str, Any]
"""One call's arguments by parameter name, defaults filled in; tensors are on the meta device."""
Check = Callable[[Arguments], str | None]
"""A precondition: why the call may not be made, as a clause; None where it may."""
Flops = Callable[[Arguments, list[Tensor]], int]
"""Floating-point operations of one call, from its arguments and its results."""


class Kind(Enum):
    """What an argument may be."""

    TENSOR = "a tensor"
    TENSORS = "a list of tensors"
    MAYBE_TENSORS = "a list of tensors and nulls"
    INT = "an int"
    INTS = "a list of ints"
    SCALAR = "a bool, an int or a float"
    FLOAT = "a float"
    FLOATS = "a list of floats"
    BOOL = "a bool"
    DTYPE = "a dtype"
    MEMORY_FORMAT = "a memory format"
    WORD = "a word"
    EQUATION = "an equation"


class Result(Enum):
    """What an operator returns."""

    TENSOR = "a tensor"
    TENSORS = "several tensors"
    NUMBER = "a number"


class _Required:
    """The default of a parameter that has none."""


REQUIRED: Final = _Required()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an operator.

    `optional` allows null, `infinite` ±inf, `unbounded` any int64, `number` a number in a tensor's place.
    """

    name: str
    kind: Kind
    optional: bool = False
    default: Any = REQUIRED
    keyword_only: bool = False
    infinite: bool = False
    unbounded: bool = False
    number: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One operator that programs may use.

    `call` takes its parameters in order, keyword-only ones by name, and a device by name where it
    `needs_device`. `writes` names the parameters it changes in place. `results` is how many tensors it
    returns where that is fixed. `infer` gives the results' shapes where the kernel's own meta function is
    not to be asked; `workspace` the bytes a kernel may hold beside its results.
    """

    key: str
    call: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    result: Result
    results: int | None = None
    checks: tuple[Check, ...] = ()
    flops: Flops | None = None
    infer: Callable[[Arguments], Any] | None = None
    workspace: Callable[[Arguments], int] | None = None
    writes: tuple[str, ...] = ()
    needs_device: bool = False

    def problem(self, arguments: Arguments) -> str | None:
        """The first precondition that does not hold."""
        for check in self.checks:
            if problem := check(arguments):
                return problem
        return None


_KINDS: Final = {
    "Tensor": Kind.TENSOR,
    "List[Tensor]": Kind.TENSORS,
    "List[Optional[Tensor]]": Kind.MAYBE_TENSORS,
    "int": Kind.INT,
    "List[int]": Kind.INTS,
    "number": Kind.SCALAR,
    "float": Kind.FLOAT,
    "List[float]": Kind.FLOATS,
    "bool": Kind.BOOL,
    "ScalarType": Kind.DTYPE,
    "MemoryFormat": Kind.MEMORY_FORMAT,
    "str": Kind.WORD,
}

_LEFT_OUT: Final = frozenset({"device", "layout", "pin_memory", "generator"})
"""Never received: where a tensor is made is the interpreter's to say, the rest keeps its default."""


def row(
    key: str,
    *checks: Check,
    flops: Flops | None = None,
    infer: Callable[[Arguments], Any] | None = None,
    workspace: Callable[[Arguments], int] | None = None,
    infinite: tuple[str, ...] = (),
    unbounded: tuple[str, ...] = (),
    numbers: tuple[str, ...] = (),
    writes: tuple[str, ...] = (),
) -> Row:
    """The row of the ATen overload `key`, e.g. ``"add.Tensor"``, a name that stands in our own source."""
    name, overload_name = key.split(".")
    overload = getattr(getattr(torch.ops.aten, name), overload_name)
    schema = overload._schema
    parameters = tuple(
        _parameter(argument, argument.name in infinite, argument.name in unbounded, argument.name in numbers)
        for argument in schema.arguments
        if argument.name not in _LEFT_OUT
    )
    in_place = tuple(
        argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write
    )
    returns = [str(returned.real_type) for returned in schema.returns]
    return Row(
        key,
        overload,
        parameters,
        Result.TENSOR if returns == ["Tensor"] else Result.TENSORS,
        results=None if returns == ["List[Tensor]"] else len(returns),
        checks=checks,
        flops=flops,
        infer=infer,
        workspace=workspace,
        writes=in_place + writes,
        needs_device=any(argument.name == "device" for argument in schema.arguments),
    )


def rows(keys: str, *checks: Check, **options: Any) -> Iterator[Row]:
    """A row each for the overloads of a written list; ``abs`` is short for ``abs.default``."""
    for key in keys.split():
        yield row(key if "." in key else f"{key}.default", *checks, **options)


def _parameter(argument: Any, infinite: bool, unbounded: bool, number: bool) -> Parameter:
    text = str(argument.real_type)
    optional = text.startswith("Optional[") and text.endswith("]")
    kind = _KINDS[text.removeprefix("Optional[").removesuffix("]") if optional else text]
    if argument.name == "equation":
        kind = Kind.EQUATION
    default = argument.default_value if argument.has_default_value() else REQUIRED
    if kind is Kind.DTYPE and isinstance(
        default, int
    ):  # torch's own number for a dtype, of int64 in all our rows
        default = torch.int64
    return Parameter(
        argument.name,
        kind,
        optional,
        default,
        argument.kwarg_only,
        infinite,
        unbounded,
        number and kind is Kind.TENSOR,
    )
