"""Bytes of a stream to lines. Pure.

A carriage return goes back to the start of the line, as on a terminal: of what a progress bar wrote over
itself, only the last state is a line.
"""

from __future__ import annotations

import codecs

_MOST_CHARACTERS = 65536


class LineSplitter:
    """Feed it bytes as they come; it keeps the line that is not complete."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""

    def feed(self, content: bytes) -> list[str]:
        """The lines that are complete now, without their ends."""
        *lines, self._rest = (self._rest + self._decoder.decode(content)).split("\n")
        if len(self._rest) > _MOST_CHARACTERS:
            lines.append(self._rest)
            self._rest = ""
        elif "\r" in self._rest[:-1]:
            # A bar that is drawn for hours must not be kept for hours.
            self._rest = "\r" + _shown(self._rest)
        return [_shown(line) for line in lines]

    def end(self) -> list[str]:
        """The last line, where it had no end."""
        rest, self._rest = self._rest + self._decoder.decode(b"", final=True), ""
        return [_shown(rest)] if rest else []


def _shown(line: str) -> str:
    """What a terminal would show: the last non-empty part between carriage returns."""
    parts = [part for part in line.split("\r") if part]
    return parts[-1] if parts else ""
