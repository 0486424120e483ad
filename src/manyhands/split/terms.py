"""What a job is, as its loaders say it when they come: plain data that travels, and that all of them must share."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from manyhands.split.jobs import Mode, Phase

_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
_Short = Annotated[str, msgspec.Meta(max_length=200)]


class Share(msgspec.Struct, frozen=True):
    """Which batches a trainer takes where one job feeds several: those with ``sequence % trainers == rank``."""

    rank: _Count = 0
    trainers: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 1


class Terms(msgspec.Struct, frozen=True):
    """A job: its mode, its data and what is to be done with them."""

    mode: Mode
    lengths: dict[Phase, _Count]
    """Samples of each phase's dataset; phases that the job does not have are absent."""
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
    shuffle: bool = False
    """Of the training phase only."""
    seed: int = 0
    epochs: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)] = 1
    early_stopping: dict[str, Any] | None = None
    wishes: dict[str, Any] = {}
    """Arguments of ``run_inference`` that shape its result."""
    fingerprint: _Short = ""
    """Stands for the datasets' kind; loaders with other data are told apart by it."""
    share: Share = Share()

    def difference(self, other: Terms) -> str | None:
        """The first thing in which `other` is not of this job, as a sentence; None where it is.

        Shares and wishes may differ: the first belongs to the stream, the second to whoever opened the job.
        """
        for name, mine, theirs in (
            ("mode", self.mode, other.mode),
            *(
                (f"length of the {phase} data", self.lengths.get(phase), other.lengths.get(phase))
                for phase in sorted({*self.lengths, *other.lengths})
            ),
            ("batch_size", self.batch_size, other.batch_size),
            ("shuffle", self.shuffle, other.shuffle),
            ("seed", self.seed, other.seed),
            ("epochs", self.epochs, other.epochs),
            ("early_stopping", self.early_stopping, other.early_stopping),
            ("rank and number of trainers", self.share, other.share),
            ("kind of dataset", self.fingerprint, other.fingerprint),
        ):
            if mine != theirs:
                return f"its {name} is {_told(theirs)}, and this job's is {_told(mine)}"
        return None


def _told(value: Any) -> str:
    if isinstance(value, Share):
        return f"{value.rank} of {value.trainers}"
    return "none" if value is None else str(value)[:80]
