"""One line of a diagnosis: what was looked at, how it is, what was found, what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from manyhands.errors import ManyhandsError, Refused, RunFailed, Unreachable

Figure = int | float | str | bool | None
Figures = dict[str, Figure]


class Verdict(StrEnum):
    """How something is: a warning can be lived with, what is bad keeps this machine out."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """``figures`` are for programs: bytes, seconds, bytes a second. ``exit_code`` counts where it is bad."""

    topic: str
    verdict: Verdict
    found: str
    do: str = ""
    figures: Figures = field(default_factory=dict)
    exit_code: int = RunFailed.exit_code


def ok(topic: str, found: str, do: str = "", /, **figures: Figure) -> Finding:
    """Nothing is in the way; `do` may still say what is worth knowing."""
    return Finding(topic, Verdict.OK, found, do, figures)


def warn(topic: str, found: str, do: str, /, **figures: Figure) -> Finding:
    """It will work, slower or not for everybody."""
    return Finding(topic, Verdict.WARN, found, do, figures)


def bad(topic: str, found: str, do: str, /, **figures: Figure) -> Finding:
    """So this machine cannot take part."""
    return Finding(topic, Verdict.BAD, found, do, figures)


def failed(topic: str, error: ManyhandsError) -> Finding:
    """A look that ended in one of our errors, whose sentence says what to do."""
    return Finding(topic, Verdict.BAD, str(error), exit_code=error.exit_code)


def exit_code(findings: Iterable[Finding]) -> int:
    """0 where nothing is bad; else a refusal's code before an unreachable peer's before any other."""
    codes = {finding.exit_code for finding in findings if finding.verdict is Verdict.BAD}
    order = (Refused.exit_code, Unreachable.exit_code)
    return next((code for code in order if code in codes), max(codes, default=0))
