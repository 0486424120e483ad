"""What a trainer does while no loader of its job is here: waits for any, or only for the one that asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from manyhands.errors import Unreachable
from manyhands.observe.waiting import Waiting
from manyhands.split.jobs import Mode

ASKER_SECONDS: Final[dict[Mode, float]] = {"validation": 10.0, "inference": 0.0}
"""How long whoever asked may be away. An inference begins anew instead, where its rows were kept."""

Patience = Callable[[Waiting], None]
"""Called again and again while nobody is here; raises Unreachable once that has been so for too long."""


def patience(mode: Mode, whom: Callable[[], str], wait_seconds: float | None) -> Patience:
    """Training goes on with any loader, whenever it comes; nobody but its asker has use for an answer."""
    if mode == "training":

        def wait_for_any(waiting: Waiting) -> None:
            waiting.say(f"waiting for {whom()}")
            waiting.check(wait_seconds, f"no loader is left: {whom()}")

        return wait_for_any

    def wait_for_the_asker(waiting: Waiting) -> None:
        if waiting.seconds >= ASKER_SECONDS[mode]:
            raise asker_gone(mode)
        waiting.say(f"the loader that asked for this {mode} is away")

    return wait_for_the_asker


def asker_gone(mode: Mode) -> Unreachable:
    """The error of a job that nobody waits for any more."""
    kept = "; what it has written stays, and the same call goes on there" if mode == "inference" else ""
    return Unreachable(f"the loader that asked for this {mode} has gone{kept}")
