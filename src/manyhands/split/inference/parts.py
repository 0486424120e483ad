"""The result of an inference on disk: one growing file a column, and a watermark that says how far they are whole.

::

    DIR/indices.npy  predictions.npy  …     1 rows are only ever appended
        watermark.json                      2 the files flushed, then replaced: so many rows, so many batches

A run that was killed between 1 and 2 cuts the files back to the watermark and asks for the batch behind it: no row
is repeated or missing. The files are NumPy's own format (numpy.lib.format, version 1.0, whose header leaves room for
the first dimension to grow), so that ``np.load(file, mmap_mode="r")`` reads them without us. Memory holds one batch.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from manyhands.clock import Clock
from manyhands.errors import StorageError, UsageError
from manyhands.split.inference.collecting import Result, result_of
from manyhands.split.inference.column import Column
from manyhands.split.inference.wishes import Columns, check_alike
from manyhands.store.files import replace_text, storage
from manyhands.store.manifest import plain

WATERMARK = "watermark.json"
LOCK = ".lock"
FORMAT = 1
COMMIT_SECONDS = 2.0
COMMIT_BYTES = 64 << 20


@dataclass
class OnDisk:
    """A sink that appends to the files of `folder`; `open` first."""

    folder: Path
    config: Mapping[str, Any]
    """What must be the same in a run that goes on here."""
    clock: Clock
    num_samples: int | None = None
    """Of the dataset; must be the same as well."""
    next_sequence: int = 0
    is_finished: bool = False
    _samples: int = 0
    _rows: int = 0
    _pending_bytes: int = 0
    _committed_at: float = 0.0
    _files: dict[str, Column] = field(default_factory=dict)
    _lock: IO[bytes] | None = None

    def open(self) -> None:
        """Begin, or go on behind the watermark of a run that was broken off.

        UsageError where the folder holds another job's result, other files, or is being written to right now;
        StorageError where its files are shorter than the watermark says.
        """
        with storage(self.folder, "create the folder"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / LOCK).open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise UsageError(f"output={self.folder}: another process writes there now; wait for it") from None
        try:
            self._resume()
        except BaseException:
            self.close()
            raise
        self._committed_at = self.clock.monotonic()

    def _resume(self) -> None:
        path = self.folder / WATERMARK
        if not path.exists():
            strangers = sorted(entry.name for entry in self.folder.iterdir() if entry.name != LOCK)
            if strangers:
                raise UsageError(
                    f"output={self.folder} holds {strangers[0]}, which is no result of ours: give an empty folder"
                )
            self.commit()  # before any other file: what lies beside a watermark is ours
            return
        mark = _read_mark(path)
        odd = next((k for k, v in plain(dict(self.config)).items() if mark["config"].get(k) != v), None)
        if odd is not None:
            raise UsageError(
                f"output={self.folder} holds a result with {odd}={mark['config'].get(odd)!r}, and this run has "
                f"{self.config[odd]!r}: give another folder, or the same options to go on"
            )
        if mark["num_samples"] != self.num_samples:
            raise UsageError(
                f"output={self.folder} holds a result of a dataset of {mark['num_samples']} samples, and this one has "
                f"{self.num_samples}: give another folder"
            )
        self.next_sequence, self._samples, self._rows = mark["next_sequence"], mark["samples"], mark["rows"]
        self.is_finished = mark["finished"]
        for name, spec in mark["columns"].items():
            column = Column(self.folder / f"{name}.npy", np.dtype(spec["dtype"]), tuple(spec["shape"]))
            column.open(self._rows)
            self._files[name] = column

    def add(self, samples: int, columns: Columns) -> None:
        """Append the next batch; the watermark follows every two seconds or 64 MiB."""
        with _resumable():
            self._append(samples, columns)

    def _append(self, samples: int, columns: Columns) -> None:
        if columns:
            for name, file in self._files.items():
                check_alike(columns, name, file.dtype, file.shape)
        if not self._files:
            for name, column in columns.items():
                self._files[name] = Column(self.folder / f"{name}.npy", column.dtype, column.shape[1:])
                self._files[name].open(0)
        for name, column in columns.items():
            self._files[name].append(column)
            self._pending_bytes += column.nbytes
        self._rows += len(columns.get("indices", ()))
        self._samples += samples
        self.next_sequence += 1
        late = self.clock.monotonic() - self._committed_at >= COMMIT_SECONDS
        if late or self._pending_bytes >= COMMIT_BYTES:
            self.commit()

    def commit(self, *, finished: bool = False) -> None:
        """Flush what was appended, then move the watermark behind it."""
        for column in self._files.values():
            column.flush(self._rows)
        mark = {
            "format": FORMAT,
            "config": plain(dict(self.config)),
            "num_samples": self.num_samples,
            "next_sequence": self.next_sequence,
            "samples": self._samples,
            "rows": self._rows,
            "finished": finished,
            "columns": {
                name: {"dtype": column.dtype.str, "shape": list(column.shape)}
                for name, column in self._files.items()
            },
        }
        with storage(self.folder, "write the watermark to"):
            replace_text(self.folder / WATERMARK, json.dumps(mark, indent=1) + "\n")
        self._pending_bytes, self._committed_at = 0, self.clock.monotonic()

    def finish(self) -> Result:
        """Commit the rest; the columns as arrays that are read from disk where they are looked at."""
        if not self.is_finished:
            with _resumable():
                self.commit(finished=True)
            self.is_finished = True
        self.close()
        columns = {name: column.mapped(self._rows) for name, column in self._files.items()}
        return result_of(columns, self._samples, self.next_sequence, self.config)

    def close(self) -> None:
        """Close the files; what was committed stays, and the next run cuts off the rest."""
        for column in self._files.values():
            column.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None


@contextmanager
def _resumable() -> Iterator[None]:
    """A disk that fails in the middle is no reason to begin anew."""
    try:
        yield
    except StorageError as error:
        said = f"{error}; what was written until then stays, and the same call goes on there"
        raise StorageError(said, error.path) from error


def _read_mark(path: Path) -> dict[str, Any]:
    try:
        mark: dict[str, Any] = json.loads(path.read_text())
        if mark["format"] != FORMAT or "num_samples" not in mark:
            raise ValueError(f"format {mark['format']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} cannot be read ({error}): start anew in an empty folder", str(path)
        ) from None
    return mark
