"""What travels between a loader and a trainer: the closed set of each direction. The wire's own hello has the version.

::

    loader                                  trainer
      │ ── Hello(terms, name, capacity) ──────► │   another protocol version never gets here
      │ ◄─────────────────────── Welcome ────── │   or Over(sentence)
      │ ── Here ──────────────────────────────► │   the time between is the round trip
      │ ── Weights [tensors] ─────────────────► │   where load_model was called
      │ ◄────── Make(serial, work), ... ─────── │   leases
      │ ── Batch(serial, …) [tensors] ────────► │   in the order of need, within the window
      │ ◄────── Used(serials, window) ───────── │   credit
      │ ◄────── Need(serial) ────────────────── │   this one beyond it: the trainer waits
      │ ◄────── Rows(sequence) [arrays] ─────── │   inference: to whoever opened the job
      │ ── Kept(sequence) ────────────────────► │   ... once they are as safe as asked for
      │ ── Failed(sentence) ──────────────────► │   the job cannot go on, for nobody; answered by Over
      │ ── Leaving(sentence) ─────────────────► │   this loader cannot, others may; answered by Over
      │ ◄────── Over(result) [tensors] ──────── │   and the loader ends the stream
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from manyhands.split.jobs import Width, Work
from manyhands.split.terms import Terms

MAX_SENTENCE = 2000
MAX_BATCH_SAMPLES = 100_000
"""Their indices must fit one message: 1 MiB, and at most nine bytes each."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
_Index = Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)]
_Sentence = Annotated[str, msgspec.Meta(max_length=MAX_SENTENCE)]


class _Message(msgspec.Struct, frozen=True, tag=True, array_like=True, forbid_unknown_fields=True, gc=False):
    pass


class BadOne(msgspec.Struct, frozen=True, array_like=True):
    """A sample that could not be made."""

    index: _Index
    error: _Sentence


# ---- loader to trainer ----


class Hello(_Message, frozen=True):
    """The first words of a loader."""

    terms: Terms
    name: Annotated[str, msgspec.Meta(max_length=64)]
    capacity: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    """How many batches it can be at work on."""
    starts: dict[Annotated[str, msgspec.Meta(max_length=16)], _Count] = {}
    """Where a phase is to begin, if not at its first batch."""
    has_weights: bool = False
    """Weights follow, which the model is to have."""
    errand: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """One call of ``start_loading`` or the like: the same on each of the streams that it takes."""


class Here(_Message, frozen=True):
    """The answer to a Welcome, at once."""


class Weights(_Message, frozen=True):
    """Body: tensors by name."""


class Batch(_Message, frozen=True):
    """Body: the batch; none where every sample was bad."""

    serial: _Count
    indices: Annotated[tuple[_Index, ...], msgspec.Meta(max_length=MAX_BATCH_SAMPLES)]
    faults: Annotated[tuple[BadOne, ...], msgspec.Meta(max_length=MAX_BATCH_SAMPLES)] = ()
    widths: Annotated[tuple[Width | None, ...], msgspec.Meta(max_length=100_000)] = ()


class Kept(_Message, frozen=True):
    """Rows up to this batch, it included, need not be sent again."""

    sequence: _Count


class Failed(_Message, frozen=True):
    """The job cannot go on, for everybody: the loader's data or workers."""

    sentence: _Sentence
    index: _Index | None = None
    """The sample at fault."""


class Leaving(_Message, frozen=True):
    """A loader goes for good, and the job may go on with others."""

    sentence: _Sentence = ""
    """Why it must; empty where somebody stopped it."""


FromLoader = Hello | Here | Weights | Batch | Kept | Failed | Leaving

# ---- trainer to loader ----


class Welcome(_Message, frozen=True):
    """The loader is of this job."""


class Make(_Message, frozen=True):
    """Leases: each a serial number, and what to make."""

    leases: Annotated[tuple[tuple[_Count, Work], ...], msgspec.Meta(max_length=4096)]


class Used(_Message, frozen=True):
    """These batches are consumed, or were dropped; how many bytes may be on their way from now on."""

    serials: tuple[_Count, ...]
    window_bytes: _Count


class Need(_Message, frozen=True):
    """The trainer waits for this batch: it may be sent beyond the window."""

    serial: _Count


class Forget(_Message, frozen=True):
    """Every lease with a serial number below this one is void."""

    below: _Count


class Rows(_Message, frozen=True):
    """Body: what inference made of a batch, arrays by name."""

    sequence: _Count


class Over(_Message, frozen=True):
    """The job has ended. Body where it ended well: ``{"result": …, "weights": … or None}``."""

    sentence: _Sentence = ""
    """Why, where it did not end well."""
    kind: Annotated[str, msgspec.Meta(max_length=32)] = ""
    """The name of the error's class."""


FromTrainer = Welcome | Make | Used | Need | Forget | Rows | Over
