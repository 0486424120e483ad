"""The rows of an inference that were sent and are not said to be kept yet: how far it may run ahead of a disk. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

MOST_UNKEPT_BYTES: Final = 64 << 20


@dataclass
class Unkept:
    """Bytes by the sequence of their batch."""

    _bytes: dict[int, int] = field(default_factory=dict)

    @property
    def has_room(self) -> bool:
        """Whether more may be sent now."""
        return sum(self._bytes.values()) < MOST_UNKEPT_BYTES

    def sent(self, sequence: int, num_bytes: int) -> None:
        """The rows of a batch are on their way."""
        self._bytes[sequence] = num_bytes

    def kept(self, sequence: int) -> None:
        """Rows up to this batch, it included, are safe."""
        for done in [at for at in self._bytes if at <= sequence]:
            del self._bytes[done]
