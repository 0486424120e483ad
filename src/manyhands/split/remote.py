"""``RemoteLoader``: the batches that loaders elsewhere make, as an iterable for anybody's own training loop.

::

    with RemoteLoader() as batches:                 # the loader's start_loading(gpu_host=...) comes here
        for epoch in range(batches.epochs):
            for x, y in batches: ...                # each pass is the next epoch, in a local DataLoader's order

A plain loop, Lightning and the Hugging Face Trainer take it where they take a DataLoader; Accelerate leaves it as it
is. What was yielded counts as used when the next batch is asked for.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch

from manyhands.clock import Clock, SystemClock
from manyhands.errors import ManyhandsError, Unreachable, UsageError
from manyhands.settings import checks, load
from manyhands.settings.defaults import default, settled
from manyhands.split import meeting
from manyhands.split.doors import DiallingDoor, ListeningDoor
from manyhands.split.intake import Intake
from manyhands.split.narrow import widen
from manyhands.split.reception import Reception
from manyhands.split.terms import Terms
from manyhands.training.batch import to_device
from manyhands.training.device import pick_device


class RemoteLoader:
    """Iterates over one epoch after another of the job that the loaders bring.

    Listens on `port`; with ``host`` it dials the loader that listens there. ``invite`` is for dialling. Batches are on
    ``device`` (None: CUDA before MPS before CPU). The first use waits for a loader. The loaders go when the last of
    their epochs was used up, at `close`, or when this process ends. Constructing stores.
    """

    def __init__(
        self,
        port: int = default("network.port"),
        *,
        host: str | None = None,
        invite: str | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self._port = port
        self._host = host
        self._given_invite = invite
        self._asked_device = device
        self._clock: Clock = SystemClock()
        self._door: ListeningDoor | DiallingDoor | None = None
        self._reception: Reception | None = None
        self._job: Intake | None = None
        self._finalizer: weakref.finalize[..., RemoteLoader] | None = None
        self._epoch = 0
        self._sequence = 0
        self._is_at_start = True

    # ---- as an iterable ----

    def __iter__(self) -> Iterator[Any]:
        """One epoch's batches: the one that `set_epoch` named, else the next. Resumed, the rest of it."""
        job = self._started()
        if not self._is_at_start and self._sequence:  # the pass before was broken off: begin the next epoch
            self._epoch, self._sequence = self._epoch + 1, 0
        epoch, start, self._is_at_start = self._epoch, self._sequence, False
        if epoch >= self.epochs:
            raise UsageError(
                f"epoch {epoch} was asked for, and the loaders gave {self.epochs}: start them with "
                f"epochs={epoch + 1} or more"
            )
        for made in job.batches("train", epoch, start):
            self._sequence = made.work.sequence + 1
            if made.batch is not None:
                yield widen(to_device(made.batch, self._device), made.widths)
        self._epoch, self._sequence, self._is_at_start = epoch + 1, 0, True
        if self._epoch >= self.epochs:
            self.close()

    def __len__(self) -> int:
        """Batches of an epoch, of this trainer's share."""
        terms = self._started().terms
        batches, share = self._started().num_batches("train"), terms.share
        return len(range(share.rank, batches, share.trainers))

    def set_epoch(self, epoch: int) -> None:
        """The next pass is this epoch; 0 is the first."""
        checks.whole("epoch", epoch, 0)
        if epoch != self._epoch or not self._is_at_start:
            self._epoch, self._sequence, self._is_at_start = epoch, 0, True

    def state_dict(self) -> dict[str, int]:
        """Where it is: a batch that was yielded is behind it."""
        return {"epoch": self._epoch, "sequence": self._sequence}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on there: the next pass is the rest of that epoch."""
        try:
            epoch, sequence = int(state["epoch"]), int(state["sequence"])
        except (KeyError, TypeError, ValueError):
            raise UsageError(f"{state!r} is no state of a RemoteLoader: it has epoch and sequence") from None
        self._epoch, self._sequence, self._is_at_start = epoch, sequence, True

    # ---- what the loaders said ----

    @property
    def epochs(self) -> int:
        """How many epochs the loaders were started for."""
        return self._started().terms.epochs

    @property
    def batch_size(self) -> int:
        """Samples of a batch; the last one of an epoch may have fewer."""
        return self._started().terms.batch_size

    @property
    def terms(self) -> Terms:
        """The whole job, as the loaders brought it."""
        return self._started().terms

    @property
    def loaders(self) -> list[str]:
        """Names of the loaders that are here now; it waits for nobody."""
        self.start()
        assert self._reception is not None
        return self._reception.loaders()

    # ---- life ----

    def start(self) -> RemoteLoader:
        """Listen, or begin to dial, and return at once; the first use does it otherwise."""
        if self._reception is None:
            settings = load(split=True)
            port = settled(self._port)
            if self._host is None:
                door: ListeningDoor | DiallingDoor = meeting.listening(
                    "training", None, port, secure=True, cpu_host=None, clock=self._clock
                )
            else:
                door = meeting.dialling(
                    self._host, port, self._given_invite, settings, secure=True, clock=self._clock
                )
            self._door, self._device = door, pick_device(self._asked_device)
            reception = Reception(
                "training", [door], meeting.bounds_of(settings), self._clock, self._device, validates=False
            )
            reception.start()
            self._reception = reception
            self._finalizer = weakref.finalize(self, _end, reception)
            meeting.announce(door, "training")
        return self

    def close(self) -> None:
        """Let the loaders go: their ``start_loading`` returns. Twice is fine."""
        if self._finalizer is not None:
            self._finalizer()

    def __enter__(self) -> RemoteLoader:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def invite(self) -> str:
        """The invite that loaders join with, ``mh://…``; it holds a secret."""
        if not isinstance(self._door, ListeningDoor) or self._door.invite is None:
            raise UsageError("there is no invite before start(), nor where a loader is dialled")
        return str(self._door.invite)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that loaders dial."""
        if not isinstance(self._door, ListeningDoor):
            raise UsageError("there is no address before start(), nor where a loader is dialled")
        return self._door.address

    def _started(self) -> Intake:
        if self._job is None:
            self.start()
            assert self._reception is not None
            self._job = self._reception.next_job()
            if self._job is None:
                raise Unreachable("this RemoteLoader was closed before a loader came")
        return self._job


def _end(reception: Reception) -> None:
    """End the job that runs, and the streams; also at the process's end."""
    with suppress(ManyhandsError):
        reception.finish({})
    reception.close()
