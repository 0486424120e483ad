"""The errors of manyhands, and the exit code each one ends a command with.

::

    ManyhandsError                    1  (never raised itself)
    ├── UsageError        (ValueError)        2  an argument, a setting, a dataset: yours to change
    │   └── CaptureFailed                     2  the model cannot travel as data; the line that says why
    ├── Unreachable       (ConnectionError)   3  nobody answers at that address
    ├── Refused           (PermissionError)   4  the other side said no, and why
    │   ├── Mismatch                          4  both sides work, but not together (version, model, class)
    │   └── ProgramRefused                    4  a model sent as data asks for what no program may have
    ├── ProtocolError                         5  a peer sent bytes that mean nothing here
    └── RunFailed         (RuntimeError)      5  the run cannot go on
        ├── NonFinite                         5  a loss or gradient is not a number, and repeats
        ├── BadSample                         5  a dataset item raised; `.index` names it
        └── StorageError                      5  a disk or a file failed; `.path` names it

Each message says what happened with its numbers, whose fault it is, and what to do next. This module
imports nothing, so that every floor may raise.
"""

from __future__ import annotations

from typing import ClassVar


class ManyhandsError(Exception):
    """The root of every error that manyhands raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(ManyhandsError, ValueError):
    """Something the caller gave is wrong; nothing was started or lost."""

    exit_code = 2


class CaptureFailed(UsageError):
    """The model cannot become a program, or computes otherwise as one.

    Nodes that bring the model need no program: ``TrainingNode(model=...)``.
    """


class Unreachable(ManyhandsError, ConnectionError):
    """Nobody answered at an address, or the connection was lost and patience ran out."""

    exit_code = 3


class Refused(ManyhandsError, PermissionError):
    """The other side answered, and said no; the message is its reason."""

    exit_code = 4


class Mismatch(Refused):
    """Both sides are well but cannot work together: versions, models or numeric classes differ."""


class ProgramRefused(Refused):
    """A program that this machine does not run, and why.

    ``node`` is the number of the node at fault in its graph; None where it is not one node's.
    """

    def __init__(self, message: str, node: int | None = None) -> None:
        super().__init__(message)
        self.node = node


class ProtocolError(ManyhandsError):
    """Bytes from a peer that do not parse, exceed their limits, or contradict what was announced."""

    exit_code = 5


class RunFailed(ManyhandsError, RuntimeError):
    """The run cannot go on; what was committed before is kept."""

    exit_code = 5


class NonFinite(RunFailed):
    """A loss or gradient is NaN or infinite, and a second machine agrees."""


class BadSample(RunFailed):
    """A dataset item could not be loaded.

    ``index`` is its position in the dataset.
    """

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class StorageError(RunFailed):
    """A file could not be written or read whole.

    ``path`` is the file or folder.
    """

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path
