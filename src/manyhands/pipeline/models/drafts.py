"""A layer of a list made into a recipe: by key where torch has the class, as a captured program where it is yours.

Either way it is built once from that recipe, on the meta device, and run: so what flows out is known, and a layer
that cannot be built or cannot take its input is told before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from manyhands.errors import ProgramRefused, UsageError
from manyhands.pipeline.models.entries import Entry
from manyhands.pipeline.models.shapes import Flow, run
from manyhands.pipeline.recipes import catalogue
from manyhands.pipeline.recipes.build import build
from manyhands.pipeline.recipes.format import Option, Recipe, TorchPart, Value


@dataclass(frozen=True)
class Draft:
    """A layer that can be built. `names` are the published names of each output, empty for a main one alone."""

    recipe: Recipe
    outputs: Sequence[Flow]
    names: Sequence[tuple[str, ...]]
    weights: Callable[[], Mapping[str, Tensor]] = dict


def draft(entry: Entry, inputs: Sequence[Flow]) -> Draft:
    """The draft of `entry` over what flows into it."""
    if entry.cls in catalogue.KEYS:
        return _of_torch(entry, inputs)
    # Imported here: torch.export takes a second or two, and most lists have no class of their own.
    from manyhands.pipeline.models.captured import capture_layer

    return capture_layer(entry, inputs)


def _of_torch(entry: Entry, inputs: Sequence[Flow]) -> Draft:
    part = TorchPart(
        catalogue.KEYS[entry.cls],
        str(entry.index),
        _options(entry),
        args=tuple(Value(at) for at in range(len(inputs))),
    )
    number = len(inputs)
    results = _run(entry, Recipe(number, (part,), (number,)), inputs)
    recipe = Recipe(number, (msgspec.structs.replace(part, results=len(results)),), (number,))
    return Draft(recipe, results[:1], [entry.produced])


def _options(entry: Entry) -> tuple[Option, ...]:
    known = catalogue.OPTIONS[entry.cls]
    options = []
    for name, value in entry.options.items():
        if name == "inplace":
            continue
        if name not in known:
            raise UsageError(
                f"{entry} is given {name}={value!r:.40}, which it does not take; it takes {', '.join(known) or 'none'}"
            )
        try:
            options.append(Option(name, catalogue.setting_of(value)))
        except TypeError as error:
            raise UsageError(
                f"{name} of {entry} is {error}, which cannot travel: give a number or a word"
            ) from None
    return tuple(options)


def _run(entry: Entry, recipe: Recipe, inputs: Sequence[Flow]) -> list[Flow]:
    try:
        with torch.device("meta"):
            module: nn.Module = build(recipe).parts[0]
    except ProgramRefused as refusal:
        raise UsageError(f"{entry} cannot be built: {refusal}") from None
    try:
        return run(module, inputs)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"{entry} {cannot_take(inputs)}: {first_line(error)}") from None


def cannot_take(inputs: Sequence[Flow]) -> str:
    """``cannot take float32 (batch, 8)``."""
    return f"cannot take {', '.join(map(str, inputs))}"


def first_line(error: Any) -> str:
    """What `error` says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
