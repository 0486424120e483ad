"""Who failed first, and who only followed. Pure.

::

    rank 2  ValueError: boom                      t = 10.000   ◀ the root cause
    rank 0  RuntimeError: Connection closed …     t = 10.004     followed
    rank 1  stopped by us                                        stopped

A peer of a rank that is gone often dies before that rank has ended, so the order of deaths alone tells
little. What counts is the first sign of each: its traceback, else its end; and an error that says that a peer
is gone is only blamed where there is no other. A rank that the launcher itself stopped is never blamed. Where all
say that a peer is gone, and one had ended by itself with exit code 0, that one went while others waited for it.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from manyhands.launch.fold import name_ranks

FAILED = 1
_MOST_LINES = 400
_LONGEST_REASON = 200
HOLD_BACK_SECONDS = 5.0
"""How long a rank may take from its last traceback to its end: interpreters with torch are slow to leave."""
_HEADER = "Traceback (most recent call last):"
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
# torch puts the rank before each line of an exception; the launcher's own tag says it already.
_RANK_PREFIX = re.compile(r"^\[rank\d+\]: ?")
# Lines of torch's C++ log ("[W1121 10:00:00 …", "[rank0]:[W1121 …"), which come after an exception at exit.
_LOG_LINE = re.compile(r"^(\[rank\d+\]:)?\[?[WEIF]\d{4} ")
_PEER_IS_GONE = re.compile(
    r"connection (closed by peer|reset by peer|was likely closed|refused)|broken pipe|timed out after|"
    r"remote process exited|socket timeout|failed to recv|recvvalue failed|sendbytes failed|"
    r"peer closed connection|nccl (communicator was aborted|remote)|"
    r"wait timeout|gloo/transport/",
    re.IGNORECASE,
)

# Peers' ports differ where the reason is one.
_PEER = re.compile(r"\[[0-9A-Fa-f.:]+\]:\d+")


@dataclass(frozen=True)
class Failure:
    """How one rank ended, badly or too early.

    `exit_code` is the process's, minus a signal's number, 0 for one that ended while others went on; `at` the first
    sign of it, in seconds of the launcher's clock; `traceback` what it printed; `was_stopped` whether the
    launcher ended it.
    """

    rank: int
    exit_code: int
    at: float
    host: str = ""
    traceback: str = ""
    was_stopped: bool = False

    @property
    def last_line(self) -> str:
        """The exception itself (the last of a chain), without the way to it."""
        lines = self.traceback.rpartition(_HEADER)[2].splitlines()
        return next((line for line in lines if line and not line[0].isspace()), "")

    @property
    def blames_a_peer(self) -> bool:
        """Whether its error says that somebody else is gone."""
        return bool(_PEER_IS_GONE.search(self.last_line))

    @property
    def is_abort(self) -> bool:
        """Whether it aborted without a word of Python's, as libraries do when a peer is gone at the wrong moment."""
        return self.exit_code == -signal.SIGABRT and not self.traceback

    @property
    def what(self) -> str:
        """``exit code 3``, ``SIGKILL``."""
        if self.exit_code >= 0:
            return f"exit code {self.exit_code}"
        try:
            return signal.Signals(-self.exit_code).name
        except ValueError:
            return f"signal {-self.exit_code}"


@dataclass(frozen=True)
class Verdict:
    """The rank that failed first, those that followed it, and those that the launcher stopped."""

    root: Failure
    followed: tuple[Failure, ...]
    stopped: tuple[Failure, ...]

    @property
    def exit_code(self) -> int:
        """What the launcher ends with: the root's, 128+n for signal n; that of one who followed where it is 0."""
        codes = [failure.exit_code for failure in (self.root, *self.followed, *self.stopped)]
        return exit_code(next((code for code in codes if code), FAILED))


def without_rank(line: str) -> str:
    """A line of stderr without the rank that torch writes before each line of an exception."""
    return _RANK_PREFIX.sub("", line)


def exit_code(code: int) -> int:
    """A process's return code as a shell shows it: 128+n for signal n (which Python writes as -n)."""
    return 128 - code if code < 0 else code


def judge(failures: Sequence[Failure]) -> Verdict:
    """The verdict over all ranks that ended badly, at least one, and those that had ended well by then."""
    failed = [failure for failure in failures if failure.exit_code]
    free = [failure for failure in failed if not failure.was_stopped] or failed
    own = [failure for failure in free if not failure.blames_a_peer]
    own = [failure for failure in own if not failure.is_abort] or own
    if not own:
        ended = [failure for failure in failures if not failure.exit_code]
        own, free = ended or free, ended + free
    root = min(own, key=lambda failure: (failure.at, failure.rank))
    followed = sorted((f for f in free if f is not root), key=lambda failure: failure.rank)
    stopped = sorted((f for f in failures if f.was_stopped and f is not root), key=lambda f: f.rank)
    return Verdict(root, tuple(followed), tuple(stopped))


def describe(verdict: Verdict) -> str:
    """The end of a failed launch: what happened, the consequences folded, the root's traceback last."""
    root = verdict.root
    lines = [f"manyhands: {_ended(root)}"]
    followed = [*verdict.followed, *(failure for failure in verdict.stopped if failure.traceback)]
    by_reason: dict[str, list[Failure]] = {}
    for failure in followed:
        by_reason.setdefault(_PEER.sub("[peer]", failure.last_line) or failure.what, []).append(failure)
    for alike in by_reason.values():
        reason = _shorten(alike[0].last_line) or alike[0].what
        lines.append(f"  {_ranks(sorted(failure.rank for failure in alike))} followed: {reason}")
    stopped = [failure.rank for failure in verdict.stopped if not failure.traceback]
    if stopped:
        lines.append(f"  {_ranks(stopped)} stopped by the launcher")
    told = [root] if root.exit_code else verdict.followed  # where others waited for it
    lines += [failure.traceback.rstrip("\n") for failure in told if failure.traceback][:1]
    return "\n".join(lines) + "\n"


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON].rstrip() + " …"


def _ended(root: Failure) -> str:
    where = f" on {root.host}" if root.host else ""
    if root.exit_code == 0:
        return f"rank {root.rank}{where} ended first, with exit code 0, while others waited for it"
    if root.exit_code > 0:
        return f"rank {root.rank}{where} failed first, with exit code {root.exit_code}"
    hint = ""
    if root.exit_code == -signal.SIGKILL:
        hint = "; where nobody did that by hand, the machine ran out of memory (`dmesg` tells)"
    return f"rank {root.rank}{where} was killed first, by {root.what}{hint}"


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {name_ranks(ranks)}"


class Witness:
    """Reads what one rank writes to stderr, and holds back what may be its last words.

    The rank's last traceback is told once, at the end, by `describe`; one that a rank survives is shown when it
    has gone on for `hold_seconds`.
    """

    def __init__(self, hold_seconds: float = HOLD_BACK_SECONDS) -> None:
        self._hold_seconds = hold_seconds
        self._lines: list[str] = []
        self._held: list[str] = []
        self._before = ""
        self.at: float | None = None

    def hear(self, line: str, now: float) -> list[str]:
        """One line, without its end and without torch's tag; the lines to show now."""
        if line == _HEADER and self._before not in _CHAINED:
            shown, self._held = self._held, []
            self._lines, self.at = [], now
        else:
            shown = []
        if line:
            self._before = line
        if self.at is None or (not self._held and self._lines):
            return [line]
        if len(self._lines) < _MOST_LINES:
            self._lines.append(line)
        self._held.append(line)
        return [*shown, *self.overdue(now)]

    def overdue(self, now: float) -> list[str]:
        """What was held back for too long for last words."""
        is_due = self.at is not None and (
            now - self.at >= self._hold_seconds or len(self._held) >= _MOST_LINES
        )
        return self.rest() if is_due else []

    def rest(self) -> list[str]:
        """All that is held back."""
        held, self._held = self._held, []
        return held

    @property
    def holds_last_words(self) -> bool:
        """Whether its traceback came just now."""
        return bool(self._held)

    @property
    def traceback(self) -> str:
        """From the header to the exception's last line; empty where there was none."""
        kept: list[str] = []
        for line in self._lines:
            if _LOG_LINE.match(line):
                break
            kept.append(line)
        return "\n".join(kept).rstrip()
