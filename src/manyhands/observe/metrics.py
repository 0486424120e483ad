"""Metric files: `log="tensorboard:DIR"`, `"csv:FILE"` or `"jsonl:FILE"`.

One method to write, three formats behind it. A file that is there already is continued, so a resumed run
goes on in it. Knows nothing of what is measured.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from manyhands.errors import StorageError, UsageError

FORMS = '"tensorboard:DIR", "csv:FILE", "jsonl:FILE" or None'


class MetricLog(Protocol):
    """Where numbers go. Used from one thread."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of one step; raises `StorageError`."""
        ...

    def close(self) -> None:
        """Flush and close; safe to call twice."""
        ...


def open_log(spec: str | None) -> MetricLog:
    """The log that `spec` names; None gives one that keeps nothing.

    Raises `UsageError` for another form and for a missing package, `StorageError` for a path that cannot be
    written.
    """
    if spec is None:
        return NoLog()
    kind, separator, target = spec.partition(":")
    if not separator or not target or kind not in _KINDS:
        raise UsageError(f"log={spec!r}: use {FORMS}")
    path = Path(target).expanduser()
    try:
        return _KINDS[kind](path)
    except OSError as error:
        raise _failed(path, error) from error


class NoLog:
    """Keeps nothing."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class JsonlLog:
    """One JSON object a line; NaN and infinities, which JSON has not, become null."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open_to_append(path)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line and hand it to the operating system."""
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            self._file.write(json.dumps({"step": step, **numbers}) + "\n")
            self._file.flush()
        except OSError as error:
            raise _failed(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class CsvLog:
    """A table whose first column is `step`; a name that comes late gets a new last column."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open_to_append(path)
        with path.open(newline="", encoding="utf-8") as existing:
            self._columns = next(csv.reader(existing), [])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row and hand it to the operating system."""
        row: dict[str, Any] = {"step": step, **values}
        try:
            new = [name for name in row if name not in self._columns]
            if new:
                self._add_columns(new)
            csv.writer(self._file, lineterminator="\n").writerow(
                [row.get(name, "") for name in self._columns]
            )
            self._file.flush()
        except OSError as error:
            raise _failed(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add_columns(self, new: list[str]) -> None:
        """Write the table anew beside the old one, a row at a time, and put it in its place."""
        self._columns += new
        self._file.close()
        aside = self._path.with_name(f".{self._path.name}-{os.getpid()}")
        with (
            self._path.open(newline="", encoding="utf-8") as old,
            aside.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self._columns)
            rows = csv.reader(old)
            next(rows, None)
            for row in rows:
                writer.writerow(row + [""] * (len(self._columns) - len(row)))
        aside.replace(self._path)
        self._file = _open_to_append(self._path)


class TensorboardLog:
    """Scalars in TensorBoard's event files."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                f'log="tensorboard:{folder}" needs TensorBoard: pip install "manyhands[metrics]"'
            ) from error
        self._path = folder
        self._writer: Any = SummaryWriter(str(folder))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Queue one scalar a name."""
        try:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        except OSError as error:
            raise _failed(self._path, error) from error

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


_KINDS: dict[str, Callable[[Path], MetricLog]] = {
    "tensorboard": TensorboardLog,
    "csv": CsvLog,
    "jsonl": JsonlLog,
}


def _open_to_append(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+b")
    _cut_torn_line(file)
    file.close()
    return path.open("a", newline="", encoding="utf-8")


def _cut_torn_line(file: IO[bytes]) -> None:
    """Drop what a killed writer left after the last whole line."""
    end = file.seek(0, os.SEEK_END)
    start = max(0, end - 65536)
    file.seek(start)
    tail = file.read()
    if tail and not tail.endswith(b"\n"):
        file.truncate(start + tail.rfind(b"\n") + 1)


def _failed(path: Path, error: OSError) -> StorageError:
    return StorageError(f"could not write the metrics to {path}: {error.strerror}; check the disk", str(path))
