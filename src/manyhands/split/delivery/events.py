"""What happens to a loader's job, as whoever runs it takes it from the inbox: a closed set."""

from __future__ import annotations

import queue
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from manyhands.errors import ManyhandsError


@dataclass(frozen=True)
class RowsCame:
    """What inference made of a batch that this delivery sent."""

    sequence: int
    samples: int
    columns: dict[str, Any]


@dataclass(frozen=True)
class JobOver:
    """The trainer ended the job: a result, or an error."""

    trainer: int
    result: dict[str, Any] | None = None
    weights: dict[str, Tensor] | None = None
    error: ManyhandsError | None = None


@dataclass(frozen=True)
class Welcomed:
    """The trainer has taken this loader in."""


@dataclass(frozen=True)
class StreamLost:
    """A stream broke; its door opens another one."""

    error: ManyhandsError


@dataclass(frozen=True)
class CannotGoOn:
    """The loader cannot go on: its data, its workers, or nobody to be reached."""

    error: ManyhandsError
    is_only_here: bool = False
    """Whether others of the job may: its workers are lost, and not the data at fault."""


@dataclass(frozen=True)
class Stopped:
    """Somebody here said stop."""


Event = RowsCame | JobOver | Welcomed | StreamLost | CannotGoOn | Stopped
Inbox = queue.SimpleQueue[Event]
