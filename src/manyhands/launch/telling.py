"""What ranks say, on its way to a person: `Console` here, `Report` from another machine to the one that asked.

A teller is called from several threads. It knows neither processes nor sockets; time comes from its clock.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from manyhands.clock import Clock, SystemClock
from manyhands.launch.blame import Failure
from manyhands.launch.fold import Fold, tag

OUT, ERR = "out", "err"
STREAMS = (OUT, ERR)


class Writable(Protocol):
    """What is needed of a text file."""

    def write(self, text: str, /) -> int:
        """Append `text`."""
        ...

    def flush(self) -> None:
        """Hand it on."""
        ...


class Teller(Protocol):
    """Where lines, notes and failures go."""

    def began(self, host: str, ranks: Iterable[int], world_size: int) -> None:
        """`ranks` of a world of `world_size` start on `host` (empty: the only machine there is)."""
        ...

    def lines(self, rank: int, stream: str, texts: Sequence[str]) -> None:
        """A rank printed these lines to ``"out"`` or ``"err"``."""
        ...

    def note(self, text: str) -> None:
        """The launcher itself has something to say."""
        ...

    def failed(self, failures: Sequence[Failure]) -> None:
        """These ranks ended badly, and no restart is left."""
        ...

    def tick(self) -> None:
        """Print what has waited long enough. To be called several times a second."""
        ...

    def close(self) -> None:
        """Print all that is left."""
        ...


class Console:
    """Tagged lines for a person: ranks' stdout to stdout, their stderr and notes to stderr.

    A world of one rank is not tagged, so that its output can be piped on.
    """

    def __init__(
        self, out: Writable | None = None, err: Writable | None = None, clock: Clock | None = None
    ) -> None:
        self._files: dict[str, Writable] = {OUT: out or sys.stdout, ERR: err or sys.stderr}
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._hosts: dict[int, str] = {}
        self._seen: set[int] = set()
        self._world_size = 1
        self._folds = {stream: Fold(1) for stream in STREAMS}
        self.failures: list[Failure] = []

    def began(self, host: str, ranks: Iterable[int], world_size: int) -> None:
        """Fold the lines of all ranks seen so far from now on."""
        with self._lock:
            self._print_rest()
            self._seen.update(ranks)
            self._world_size = world_size
            self._hosts.update(dict.fromkeys(ranks, host) if host else {})
            self._folds = {stream: Fold(len(self._seen)) for stream in STREAMS}

    def lines(self, rank: int, stream: str, texts: Sequence[str]) -> None:
        """Hold or print them."""
        now = self._clock.monotonic()
        with self._lock:
            for text in texts:
                self._folds[stream].add(rank, text, now)
            self._print(stream, self._folds[stream].take(now))

    def note(self, text: str) -> None:
        """Print it at once, on stderr."""
        with self._lock:
            self._print_rest()
            self._write(ERR, f"manyhands: {text}\n")

    def failed(self, failures: Sequence[Failure]) -> None:
        """Keep them for the verdict."""
        with self._lock:
            known = {failure.rank for failure in self.failures}
            self.failures += [failure for failure in failures if failure.rank not in known]

    def tick(self) -> None:
        """Print what has waited long enough."""
        now = self._clock.monotonic()
        with self._lock:
            for stream in STREAMS:
                self._print(stream, self._folds[stream].take(now))

    def close(self) -> None:
        """Print all that is left."""
        with self._lock:
            self._print_rest()

    def _print_rest(self) -> None:
        for stream in STREAMS:
            self._print(stream, self._folds[stream].flush())

    def _print(self, stream: str, lines: Sequence[tuple[list[int], str]]) -> None:
        if lines:
            is_alone = self._world_size == 1
            shown = [text if is_alone else f"{tag(ranks, self._hosts)} {text}" for ranks, text in lines]
            self._write(stream, "\n".join(shown) + "\n")

    def _write(self, stream: str, text: str) -> None:
        try:
            self._files[stream].write(text)
            self._files[stream].flush()
        except BrokenPipeError:
            # Whoever read has gone (`| head`): the ranks go on, their files are written.
            self._files[stream] = _Nowhere()


class _Nowhere:
    """A text file that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Nothing to do."""


class Report:
    """One JSON object a line, for the launcher on another machine; `read_into` is its other end."""

    def __init__(self, out: Writable, host: str, clock: Clock | None = None) -> None:
        self._out = out
        self._host = host
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()

    def began(self, host: str, ranks: Iterable[int], world_size: int) -> None:
        """See `Teller`."""
        self.send({"event": "began", "host": host, "ranks": list(ranks), "world_size": world_size})

    def lines(self, rank: int, stream: str, texts: Sequence[str]) -> None:
        """See `Teller`."""
        self.send({"event": "lines", "rank": rank, "stream": stream, "texts": list(texts)})

    def note(self, text: str) -> None:
        """See `Teller`."""
        self.send({"event": "note", "text": text})

    def failed(self, failures: Sequence[Failure]) -> None:
        """Tells how long ago, since clocks of two machines are not comparable.

        Other machines tell their own, but for ranks that ended well there: that this was too early is seen here.
        """
        now = self._clock.monotonic()
        told = [
            {**asdict(failure), "at": now - failure.at}
            for failure in failures
            if failure.host == self._host or failure.exit_code == 0
        ]
        self.send({"event": "failed", "failures": told})

    def tick(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""

    def send(self, event: dict[str, Any]) -> None:
        """One event. A launcher that is gone is noticed by its closed pipe to us, not here."""
        try:
            with self._lock:
                self._out.write(json.dumps(event) + "\n")
                self._out.flush()
        except BrokenPipeError:
            return


def read_into(teller: Teller, event: dict[str, Any], host: str, now: float) -> bool:
    """Hand one event of a `Report` to `teller`, as of `host` at `now`; False for an event of another kind."""
    match event:
        case {"event": "began", "ranks": ranks, "world_size": world_size}:
            teller.began(host, ranks, world_size)
        case {"event": "lines", "rank": rank, "stream": stream, "texts": texts}:
            teller.lines(rank, stream, texts)
        case {"event": "note", "text": text}:
            teller.note(f"{host}: {text}")
        case {"event": "failed", "failures": failures}:
            teller.failed([Failure(**{**f, "host": host, "at": now - f["at"]}) for f in failures])
        case _:
            return False
    return True
