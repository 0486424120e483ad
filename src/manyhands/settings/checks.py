"""What a value must be, said once: each check names the argument and what it was given. Knows no argument itself."""

from __future__ import annotations

import math
from typing import Any

from manyhands.errors import UsageError


def whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """UsageError where `value` is no int from `least` to `most`; True and False are none."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if is_int and value >= least and (most is None or value <= most):
        return
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise UsageError(f"{name}={value!r} must be a whole number {bounds}")


def number(name: str, value: Any, least: float, most: float = math.inf, *, above: bool = False) -> None:
    """UsageError where `value` is no number from `least` (or `above` it) to `most`; NaN is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and (value > least if above else value >= least) and value <= most:
        return
    bounds = f"greater than {least:g}" if above else f"from {least:g}"
    raise UsageError(
        f"{name}={value!r} must be a number {bounds}{'' if most == math.inf else f' to {most:g}'}"
    )


def callables(**given: Any) -> None:
    """UsageError naming the first that is neither None nor can be called."""
    for name, value in given.items():
        if value is not None and not callable(value):
            raise UsageError(f"{name}={value!r} cannot be called: give a function, or None")
