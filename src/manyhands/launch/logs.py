"""What the ranks of this machine print: through pipes, by one thread, to the teller, to files, to a witness.

::

    rank 0 stdout ──pipe──┐                 ┌──▶ teller (unless filtered or redirected)
    rank 0 stderr ──pipe──┤  one thread,    ├──▶ file, byte for byte (redirected, teed, --log-dir)
    rank 1 stdout ──pipe──┤  in the order   ├──▶ witness: the last traceback, and when it came
    rank 1 stderr ──pipe──┘  of arrival     └──▶ time of the end: both pipes are closed

torch's elastic agent asks a `LogsSpecs` for paths and opens them itself; a pipe has a path in /dev/fd. One
thread for all, because which traceback came first is what decides who is to blame.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, LogsDest, Std

from manyhands.clock import Clock
from manyhands.launch.blame import Witness, without_rank
from manyhands.launch.splitting import LineSplitter
from manyhands.launch.telling import ERR, OUT, Teller

_TICK_SECONDS = 0.05
_READ_BYTES = 65536


@dataclass
class _Pipe:
    rank: int
    stream: str
    is_shown: bool
    file: BinaryIO | None
    splitter: LineSplitter = field(default_factory=LineSplitter)


class Logs(DefaultLogsSpecs):
    """Paths for torch's agent, and the thread that reads what is written to them.

    `folder` takes error files and, of what `redirects` and `tee` name, the streams; `filters` are the words by
    stream of which a line must have one to be copied into torchrun's ``filtered_*.log``.
    """

    def __init__(
        self,
        folder: Path,
        teller: Teller,
        clock: Clock,
        *,
        host: str = "",
        redirects: Std | dict[int, Std] = Std.NONE,
        tee: Std | dict[int, Std] = Std.NONE,
        shown_ranks: set[int] | None = None,
        filters: Mapping[str, list[str]] | None = None,
    ) -> None:
        super().__init__(str(folder), redirects, tee, shown_ranks)
        self._teller = teller
        self._clock = clock
        self._host = host
        self._filters = dict(filters or {})
        self._selector = selectors.DefaultSelector()
        self._write_ends: list[int] = []
        self._filtered: dict[str, BinaryIO] = {}
        self._shown: set[int] = set()
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._deadline = 0.0
        self.witnesses: dict[int, Witness] = {}
        self.ended_at: dict[int, float] = {}

    # ---- what torch's agent asks ----

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Pipes for every stream of one attempt; `envs` holds each local rank's environment."""
        dest = super().reify(envs)
        self.finish()
        self.witnesses, self.ended_at = {}, {}
        folder = Path(dest.error_files[0]).parent.parent
        self._filtered = {
            stream: (folder / f"filtered_std{stream}.log").open("wb") for stream in self._filters
        }
        ranks = {local: int(env["RANK"]) for local, env in envs.items()}
        self._teller.began(self._host, ranks.values(), int(envs[0]["WORLD_SIZE"]))
        for local, rank in ranks.items():
            self.witnesses[rank] = Witness()
            dest.stdouts[local] = self._open(rank, OUT, dest.stdouts[local], local in dest.tee_stdouts)
            dest.stderrs[local] = self._open(rank, ERR, dest.stderrs[local], local in dest.tee_stderrs)
        dest.tee_stdouts, dest.tee_stderrs = {}, {}
        return dest

    def _make_log_dir(self, log_dir: str | None, rdzv_run_id: str) -> str:
        # Two machines may share a folder: the name of the machine tells their logs apart.
        return str(super()._make_log_dir(log_dir, f"{rdzv_run_id}_{self._host or socket.gethostname()}"))

    def _open(self, rank: int, stream: str, path: str, is_teed: bool) -> str:
        reading, writing = os.pipe()
        file = Path(path).open("wb") if path else None  # noqa: SIM115 - closed with its pipe
        pipe = _Pipe(rank, stream, is_shown=(not path or is_teed) and path != os.devnull, file=file)
        if stream == ERR and pipe.is_shown:
            self._shown.add(rank)
        self._selector.register(reading, selectors.EVENT_READ, pipe)
        self._write_ends.append(writing)
        return f"/dev/fd/{writing}"

    # ---- reading ----

    def start(self) -> None:
        """Read; to be called when the ranks have their ends of the pipes."""
        for descriptor in self._write_ends:
            os.close(descriptor)
        self._write_ends = []
        self._ending.clear()
        self._thread = threading.Thread(target=self._read, name="manyhands-logs", daemon=True)
        self._thread.start()

    def finish(self, told: Collection[int] = (), patience_seconds: float = 1.0) -> None:
        """Read what is left of ranks that have ended; whoever else holds their pipes is waited for this long.

        The last tracebacks of the ranks `told` are not shown: the verdict has them.
        """
        if self._thread is None:
            return
        self._deadline = self._clock.monotonic() + patience_seconds
        self._ending.set()
        self._thread.join()
        self._thread = None
        for file in self._filtered.values():
            file.close()
        for key in list(self._selector.get_map().values()):
            self._close(key)
        for rank, witness in self.witnesses.items():
            if rank not in told:
                self._show_held(rank, witness.rest())
        self._teller.close()

    def _read(self) -> None:
        while self._selector.get_map():
            if self._ending.is_set() and self._clock.monotonic() >= self._deadline:
                return
            for key, _ in self._selector.select(_TICK_SECONDS):
                self._take(key)
            now = self._clock.monotonic()
            for rank, witness in self.witnesses.items():
                self._show_held(rank, witness.overdue(now))
            self._teller.tick()

    def _take(self, key: selectors.SelectorKey) -> None:
        pipe: _Pipe = key.data
        content = os.read(key.fd, _READ_BYTES)
        if content and pipe.file is not None:
            pipe.file.write(content)
            pipe.file.flush()
        lines = pipe.splitter.feed(content) if content else pipe.splitter.end()
        if lines:
            self._hear(pipe, lines)
        if not content:
            self._close(key)
            self._note_end(pipe.rank)

    def _hear(self, pipe: _Pipe, lines: list[str]) -> None:
        now = self._clock.monotonic()
        if pipe.stream == ERR:
            lines = [without_rank(line) for line in lines]
            shown = [text for line in lines for text in self.witnesses[pipe.rank].hear(line, now)]
        else:
            shown = lines
        if pipe.is_shown and shown:
            self._teller.lines(pipe.rank, pipe.stream, shown)
        for line in lines if pipe.stream in self._filtered else ():
            if any(word in line for word in self._filters[pipe.stream]):
                self._filtered[pipe.stream].write(f"[{pipe.rank}] {line}\n".encode())

    def _show_held(self, rank: int, lines: list[str]) -> None:
        if lines and rank in self._shown:
            self._teller.lines(rank, ERR, lines)

    def _close(self, key: selectors.SelectorKey) -> None:
        self._selector.unregister(key.fd)
        os.close(key.fd)
        if key.data.file is not None:
            key.data.file.close()

    def _note_end(self, rank: int) -> None:
        if all(key.data.rank != rank for key in self._selector.get_map().values()):
            self.ended_at[rank] = self._clock.monotonic()
