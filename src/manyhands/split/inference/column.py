"""One column of an inference on disk: a ``.npy`` file that grows, and is cut back to what is known to be whole."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from manyhands.errors import StorageError
from manyhands.store.files import storage


@dataclass
class Column:
    """One ``.npy`` file that grows."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    """Of one row."""
    _file: IO[bytes] | None = None

    def open(self, rows: int) -> None:
        """Open for appending behind `rows` rows; what lies there is cut off."""
        whole = len(self._header(rows)) + rows * self.dtype.itemsize * int(np.prod(self.shape))
        with storage(self.path, "open"):
            self._file = self.path.open("r+b" if self.path.exists() else "w+b")
            size = self._file.seek(0, os.SEEK_END)
            if rows and size < whole:
                self.close()
                raise StorageError(
                    f"{self.path} has {size:,} bytes where its watermark needs {whole:,}: it is damaged; start anew "
                    "in an empty folder",
                    str(self.path),
                )
            self._file.truncate(whole)
            self._file.seek(0)
            self._file.write(self._header(rows))
            self._file.seek(whole)

    def append(self, rows: np.ndarray[Any, Any]) -> None:
        """Write rows behind the others."""
        assert self._file is not None
        with storage(self.path, "write rows to", rows.nbytes):
            self._file.write(np.ascontiguousarray(rows).data)

    def flush(self, rows: int) -> None:
        """Enter the number of rows into the header, and flush everything to the disk."""
        assert self._file is not None
        with storage(self.path, "write rows to"):
            end = self._file.tell()
            self._file.seek(0)
            self._file.write(self._header(rows))
            self._file.seek(end)
            self._file.flush()
            os.fsync(self._file.fileno())

    def mapped(self, rows: int) -> np.ndarray[Any, Any]:
        """The first `rows` rows, read when they are looked at."""
        if rows == 0:  # nothing can be mapped of an empty file
            return np.empty((0, *self.shape), self.dtype)
        array: np.ndarray[Any, Any] = np.load(self.path, mmap_mode="r")
        return array

    def close(self) -> None:
        """Close, whatever the disk says: the watermark knows what is whole."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError:
                return

    def _header(self, rows: int) -> bytes:
        buffer = io.BytesIO()
        fields = {
            "descr": npy.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (rows, *self.shape),
        }
        npy.write_array_header_1_0(buffer, fields)
        return buffer.getvalue()
