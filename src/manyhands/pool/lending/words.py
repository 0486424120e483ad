"""What an agent and its compute child say to each other beside the stream's own messages.

::

    child                                   agent
      | ── READY ─────────────────────────────→ |  torch is loaded, this is my device
      | ── DIAL ──────────────────────────────→ |  (dials, for as long as its patience lasts)
      | ←───────────────────────────── OPENED ─ |
      | ⇄ MESSAGE ⇄                             |  the stream, byte for byte
      | ── PULSE (each second), NOTE ─────────→ |
      | ── FINISH, CLOSE ─────────────────────→ |
      | ←────────────────────────────── ENDED ─ |  once a stream, however it ended
      | ── OUTCOME ───────────────────────────→ |  the child's last word

Decoded strictly and bounded, in both directions. Loads no torch.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from manyhands import errors
from manyhands.errors import ManyhandsError, ProtocolError, RunFailed
from manyhands.observe.text import clean_line

_T = TypeVar("_T")
MOST_CHARACTERS: Final = 4000
Text = Annotated[str, Meta(max_length=MOST_CHARACTERS)]
Short = Annotated[str, Meta(max_length=128)]
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Seconds = Annotated[float, Meta(ge=0.0, le=1e12)]


class Kind(IntEnum):
    """What a message of a channel is."""

    MESSAGE = 1
    READY = 2
    DIAL = 3
    FINISH = 4
    CLOSE = 5
    PULSE = 6
    NOTE = 7
    OUTCOME = 8
    OPENED = 9
    ENDED = 10


FROM_CHILD: Final = frozenset(
    {Kind.MESSAGE, Kind.READY, Kind.DIAL, Kind.FINISH, Kind.CLOSE, Kind.PULSE, Kind.NOTE, Kind.OUTCOME}
)
FROM_AGENT: Final = frozenset({Kind.MESSAGE, Kind.OPENED, Kind.ENDED})


class _Word(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of one kind."""


class Order(_Word, frozen=True):
    """What a child is started with, as its only argument: nothing of it is secret.

    ``descriptors`` are those of its channel; ``cpus`` the processors that it may use (none named: all of them);
    ``memory_bytes`` what it may allocate on a processor; ``num_ranks`` of how many processes the node consists,
    of which this child is the first.
    """

    descriptors: tuple[int, int, int]
    name: str
    device: str | None
    cpus: tuple[int, ...]
    memory_bytes: int
    verbose: bool
    num_ranks: int = 1


class Ready(_Word, frozen=True):
    """The child is loaded: its device, how many CUDA devices it sees, and the instructions torch found (AVX2, ...)."""

    device: Short
    num_cuda: Count
    capability: Short


class Pulse(_Word, frozen=True):
    """What a child has computed so far, and for how long it has been at what it does now (0: it waits)."""

    leaves: Count
    samples: Count
    seconds: Seconds
    slowest_seconds: Seconds
    busy_seconds: Seconds


class Note(_Word, frozen=True):
    """A line of the child's log; `level` is one of logging's."""

    level: Annotated[int, Meta(ge=0, le=50)]
    text: Text


class Ending(_Word, frozen=True):
    """How a stream or a child ended: the name of an error of ours and its sentence; none: well."""

    error: Short | None = None
    text: Text = ""


def pack(word: _Word) -> bytes:
    """The bytes of a body."""
    return msgspec.msgpack.encode(word)


def unpack(body: bytes, kind: type[_T]) -> _T:
    """The body that `body` is; ProtocolError where it is none."""
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProtocolError(f"the other process sent no {kind.__name__}: {error}") from None


def ending_of(error: BaseException) -> Ending:
    """An error as the other process hears of it."""
    return Ending(type(error).__name__, str(error)[:MOST_CHARACTERS])


def error_of(ending: Ending) -> ManyhandsError:
    """The error again; RunFailed where it is not one that a sentence alone makes."""
    text = clean_line(ending.text, max=2000)
    kind = _PLAIN.get(ending.error or "")
    return kind(text) if kind is not None else RunFailed(f"{clean_line(ending.error or '')}: {text}")


_PLAIN: Final[dict[str, type[ManyhandsError]]] = {
    kind.__name__: kind
    for kind in (
        errors.UsageError,
        errors.Unreachable,
        errors.Refused,
        errors.Mismatch,
        errors.ProgramRefused,
        errors.ProtocolError,
        errors.RunFailed,
        errors.NonFinite,
    )
}
