"""What goes wrong in a node, as a script: where in the protocol, at which step, and how.

::

    hello ──▶ everything ──▶ probed ──▶ granted ──▶ computing ──▶ computed ──▶ half_sent ──▶ sent
     send       receive       send      receive      forward        send         send         send
                                  state_half (receive)

Plain values, no torch: the test's process writes them, the node's process acts on them (`faulty`). A fault
that fired says so before it acts, so that a test can insist that it did.
"""

from __future__ import annotations

import threading
from typing import Any, Literal, get_args

import msgspec

from manyhands.errors import UsageError

Point = Literal[
    "hello", "everything", "probed", "granted", "computing", "computed", "half_sent", "sent", "state_half"
]
Action = Literal["kill", "stop", "raise", "hang", "disconnect", "drop", "duplicate", "corrupt", "wrong"]
ON_MESSAGE = ("drop", "duplicate", "corrupt", "wrong")
_WITHOUT_MESSAGE = ("computing", "half_sent")
_BODIES = ("everything", "state_half")
_WITHOUT_STEP = ("hello", "everything", "probed")


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One failure of one node; it happens once.

    ``at``: *hello* and *probed* before they are sent; *everything* while the whole model arrives; *granted*
    before the node knows of its lease; *state_half* when half of a step's weights have arrived; *computing*
    between forward and backward; *computed* before a leaf's receipt is sent; *half_sent* when half of a
    partial sum has left; *sent* when all of it has. ``step`` is the step it belongs to (None: the first that
    comes); ``count`` waits for the n-th such moment.

    ``action``: *kill* (SIGKILL), *stop* (SIGSTOP, until ``LocalCluster.cont``), *raise* in the node's own
    code, *hang* there for ever, *disconnect*; or to the message itself: *drop* it, *duplicate* it, *corrupt*
    its checksum, or send a *wrong* value in a well-formed one.
    """

    at: Point
    action: Action = "kill"
    step: int | None = None
    count: int = 1

    def __post_init__(self) -> None:
        """UsageError for a fault that could never fire."""
        if self.at not in get_args(Point) or self.action not in get_args(Action):
            raise UsageError(
                f"a fault is at one of {', '.join(get_args(Point))} and does one of "
                f"{', '.join(get_args(Action))}, not {self.action!r} at {self.at!r}"
            )
        if self.action in ON_MESSAGE and self.at in _WITHOUT_MESSAGE:
            raise UsageError(f"{self.action!r} needs a message, and there is none at {self.at!r}")
        if self.action in ("drop", "duplicate") and self.at in _BODIES:
            raise UsageError(f"{self.action!r} at {self.at!r}: no stream loses or repeats part of a body")
        if self.action == "wrong" and self.at != "sent":
            raise UsageError("'wrong' changes a partial sum: give at=\"sent\"")
        if self.step is not None and self.at in _WITHOUT_STEP:
            raise UsageError(f"{self.at!r} belongs to no step: leave step out")
        if self.count < 1:
            raise UsageError(f"count={self.count}: faults count from 1")


class Fired(msgspec.Struct, frozen=True):
    """A fault that happened: in which node (its number), at which step."""

    node: int
    fault: Fault
    step: int | None


def to_plain(faults: tuple[Fault, ...]) -> list[Any]:
    """As JSON holds them."""
    plain: list[Any] = msgspec.to_builtins(faults)
    return plain


def from_plain(plain: Any) -> tuple[Fault, ...]:
    """Back from JSON."""
    return msgspec.convert(plain, tuple[Fault, ...])


class Script:
    """Which faults are still to come in one node; asked at every point, from any thread."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        self._left = {number: fault.count for number, fault in enumerate(faults)}
        self._faults = faults
        self._lock = threading.Lock()

    def take(self, at: Point, step: int | None) -> Fault | None:
        """The fault that is due at this moment; each is given once."""
        with self._lock:
            for number in list(self._left):
                fault = self._faults[number]
                if fault.at != at or (fault.step is not None and fault.step != step):
                    continue
                self._left[number] -= 1
                if self._left[number] == 0:
                    del self._left[number]
                    return fault
        return None
