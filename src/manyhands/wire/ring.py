"""Where the next message goes in a shared memory of fixed size: arithmetic only.

Messages lie whole, in the order in which they were placed, and are freed in that order::

    |  B   |        |   A   ·   ·   |
    0    head     tail             size      B was placed after A, at the start, where there was room
"""

from __future__ import annotations

from collections import deque

from manyhands.errors import ProtocolError


class Ring:
    """The writer's account of one shared memory of `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._placed: deque[tuple[int, int]] = deque()

    def place(self, num_bytes: int) -> int | None:
        """The offset at which `num_bytes` may be written now; None until more is freed."""
        offset = self._free_offset(num_bytes)
        if offset is not None:
            self._placed.append((offset, offset + num_bytes))
        return offset

    def free(self, count: int) -> None:
        """The reader has copied out the oldest `count` messages. ProtocolError where there are not so many."""
        if count > len(self._placed):
            raise ProtocolError(
                f"{count} messages of the shared memory were given back, and {len(self._placed)} lay there"
            )
        for _ in range(count):
            self._placed.popleft()

    def _free_offset(self, num_bytes: int) -> int | None:
        if not self._placed:
            return 0 if num_bytes <= self.size else None
        tail, head = self._placed[0][0], self._placed[-1][1]
        is_wrapped = self._placed[-1][0] < tail
        end = tail if is_wrapped else self.size
        if end - head >= num_bytes:
            return head
        return 0 if not is_wrapped and num_bytes <= tail else None
