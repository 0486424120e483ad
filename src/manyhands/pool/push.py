"""New weights on their way while the rest of them is still being computed.

Where a state is many chunks, each is packed as soon as its bytes are final, once, and posted to every node that
will most likely be leased the next step: those that computed this one. Nodes receive and copy while the coordinator
goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

from manyhands.fleet.messages import State, encode
from manyhands.fleet.session import CHUNK_BYTES, Bulk
from manyhands.pool.member import Member
from manyhands.wire.envelope import pack


class Push:
    """One version of the state, to some members."""

    def __init__(self, body: memoryview, message: State, members: Sequence[Member]) -> None:
        self._body = body
        self._message = message
        self._members = list(members)
        self._posted = 0

    def advance(self, final_bytes: int) -> None:
        """Post the chunks that lie wholly in the first `final_bytes` of the body."""
        while self._posted < final_bytes:
            end = min(self._posted + CHUNK_BYTES, len(self._body))
            if end > final_bytes:
                return
            control = b"" if self._posted else encode(self._message)
            transfer = self._message.transfer
            payload = self._body[self._posted : end]
            envelope = pack(control, transfer=transfer, offset=self._posted, payload=payload)
            self._posted = end
            for member in self._members:
                member.session.post(self._bulk(transfer, envelope))

    def _bulk(self, transfer: int, envelope: bytes) -> Bulk:
        is_change = self._message.packed
        return Bulk(None, transfer, b"", (envelope,), supersedes=not is_change, is_change=is_change)

    def finish(self) -> None:
        """Everything is posted: these members hold the version."""
        for member in self._members:
            member.holds_version = self._message.version
            member.forget_before(self._message.version)


def is_worth_it(body: memoryview) -> bool:
    """Whether what is sent is more than a chunk, so that a part of it can travel before the rest."""
    return len(body) > CHUNK_BYTES
