"""A layer as data: the parts it calls, what each takes, and what comes out.

::

    values   0 … n-1          the layer's inputs
             n …              the tensors that each part gives, in order
    part     "torch"          a layer of the catalogue: class by key, typed options
             "program"        operators between modules, or a user's class: an encoded program
    outputs                   the values that leave, first the main one

A part refers to EARLIER values only. Most layers are one torch part over one input. MessagePack, arrays only, so
that the same recipe has the same bytes. This module knows shapes of messages and that references look back; what
a class or a program may be is for `catalogue` and `programs.parser` to judge.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from manyhands.errors import ProgramRefused
from manyhands.programs.format import (
    HEADER,
    MAX_CONSTANT_BYTES,
    MAX_CONTROL_BYTES,
    Dtype,
    Name,
)

MAX_VALUES: Final = 1_024
MAX_PARTS: Final = 16
"""One module and the programs around it need three."""
MAX_PROGRAM_BYTES: Final = HEADER.size + MAX_CONTROL_BYTES + MAX_CONSTANT_BYTES
MAX_RECIPE_BYTES: Final = MAX_PROGRAM_BYTES + (1 << 16)

Index = Annotated[int, Meta(ge=0, lt=MAX_VALUES)]
Integer = Annotated[int, Meta(ge=-(2**31), le=2**31)]
"""No size, dimension or count of a real layer is larger."""
Word = Annotated[str, Meta(max_length=32)]


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A piece of a recipe: an array, decoded strictly."""


class Value(_Part, frozen=True, tag="v"):
    """One of the layer's values, by its number."""

    index: Index


class Sizes(_Part, frozen=True, tag="l"):
    """A short tuple of numbers: a kernel's sizes, a shape."""

    items: Annotated[tuple[bool | Integer | float | None, ...], Meta(max_length=8)]


Literal = None | bool | Integer | float | Word
Setting = Literal | Sizes | Dtype
"""What an option of a constructor may be."""
Argument = Literal | Value
"""What a call may be given."""


class Option(_Part, frozen=True):
    """An argument of a layer's constructor."""

    name: Word
    value: Setting


class Keyword(_Part, frozen=True):
    """An argument of a layer's forward, by name."""

    name: Word
    value: Argument


class TorchPart(_Part, frozen=True, tag="torch"):
    """A layer of the catalogue, its parameters under `path` in the model (``encoder.1`` + ``.weight``).

    `frozen` are the local names of parameters that take no gradient. `results` is how many tensors it gives.
    """

    kind: Annotated[str, Meta(max_length=64)]
    path: Name
    options: Annotated[tuple[Option, ...], Meta(max_length=32)] = ()
    args: Annotated[tuple[Argument, ...], Meta(max_length=32)] = (Value(0),)
    keywords: Annotated[tuple[Keyword, ...], Meta(max_length=16)] = ()
    results: Annotated[int, Meta(ge=1, le=64)] = 1
    frozen: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()


class ProgramPart(_Part, frozen=True, tag="program"):
    """An encoded program without a loss; its parameters have the model's own names."""

    program: Annotated[bytes, Meta(max_length=MAX_PROGRAM_BYTES)]
    args: Annotated[tuple[Index, ...], Meta(max_length=MAX_VALUES)]
    results: Annotated[int, Meta(ge=1, le=MAX_VALUES)]


class Recipe(_Part, frozen=True):
    """A whole layer: `num_inputs` tensors in, one tensor for each of `outputs` out."""

    num_inputs: Annotated[int, Meta(ge=0, le=MAX_VALUES)]
    parts: Annotated[tuple[TorchPart | ProgramPart, ...], Meta(min_length=1, max_length=MAX_PARTS)]
    outputs: Annotated[tuple[Index, ...], Meta(min_length=1, max_length=MAX_VALUES)]


_DECODER: Final = msgspec.msgpack.Decoder(Recipe)


def encode(recipe: Recipe) -> bytes:
    """The bytes of `recipe`: equal recipes, equal bytes."""
    return msgspec.msgpack.encode(recipe)


def decode(data: bytes) -> Recipe:
    """The recipe that `data` is; ProgramRefused where it is none, or something in it looks ahead."""
    if len(data) > MAX_RECIPE_BYTES:
        raise ProgramRefused(f"a layer's recipe of {len(data)} bytes; at most {MAX_RECIPE_BYTES} may travel")
    try:
        recipe = _DECODER.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProgramRefused(f"these bytes are no layer's recipe: {str(error)[:200]}") from None
    _check_references(recipe)
    return recipe


def _check_references(recipe: Recipe) -> None:
    known = recipe.num_inputs
    for number, part in enumerate(recipe.parts):
        if furthest := max(used(part), default=-1) + 1:
            _check_known(furthest - 1, known, f"part {number}")
        known += part.results
    for index in recipe.outputs:
        _check_known(index, known, "the output")


def used(part: TorchPart | ProgramPart) -> list[int]:
    """The values that `part` takes."""
    if isinstance(part, ProgramPart):
        return list(part.args)
    given = [*part.args, *(keyword.value for keyword in part.keywords)]
    return [argument.index for argument in given if isinstance(argument, Value)]


def _check_known(index: int, known: int, what: str) -> None:
    if index >= known:
        raise ProgramRefused(f"{what} of a recipe refers to value {index} before it is made ({known} are)")
