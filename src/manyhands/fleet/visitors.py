"""What a coordinator tells each peer that it let in: how it stands, what a run needs, and echoes to measure a link.

Pure: no socket, and time is an argument. Every mode with a coordinator answers these alike.
"""

from __future__ import annotations

import msgspec

from manyhands.errors import Refused
from manyhands.fleet.messages import AskEcho

BURST_BYTES = 64 << 20
BYTES_PER_SECOND = 1 << 20
_QUESTION_BYTES = 256
"""What a question costs beside its bytes, so that empty ones have an end too."""


class Needs(msgspec.Struct, frozen=True):
    """What taking part asks of a machine. ``model_bytes`` counts parameters and buffers, ``leaf_bytes`` one
    micro-batch's data; activations are in neither.
    """

    parameters: int
    model_bytes: int
    leaf_samples: int
    leaf_bytes: int
    data: str
    numerics: str
    threads: int


class Standing(msgspec.Struct, frozen=True):
    """How a peer stands with a coordinator: seconds since 1970; no expiry and no uses where there is no invite."""

    role: str
    run: str
    state: str
    release: str
    time: float
    expires: float | None
    uses_left: int | None
    needs: Needs


class Echoes:
    """Echoes within a budget that all peers share (a token bucket), so that measuring cannot crowd out a run."""

    def __init__(self) -> None:
        self._left = float(BURST_BYTES)
        self._at: float | None = None

    def answer(self, question: AskEcho, now: float) -> bytes:
        """As many zero bytes as were asked for. Refused where the budget is spent, saying when to ask again."""
        passed = 0.0 if self._at is None else max(0.0, now - self._at)
        self._left, self._at = min(BURST_BYTES, self._left + passed * BYTES_PER_SECOND), now
        cost = _QUESTION_BYTES + len(question.filler) + question.num_bytes
        if cost > self._left:
            raise Refused(
                f"this coordinator's links are measured at most {BURST_BYTES >> 20} MiB at a time: "
                f"ask again in {(BURST_BYTES - self._left) / BYTES_PER_SECOND:.0f} s"
            )
        self._left -= cost
        return bytes(question.num_bytes)
