"""Opens the journal's SQLite file: its tables, its journal mode, its integrity, and who may hold it.

Nothing here knows what the rows mean. Sizes: four credits and a commit take about 205 bytes
on the disk (ids and counters are SQLite's variable-length integers, node keys are stored once).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from manyhands.errors import StorageError, UsageError
from manyhands.store.files import storage, sync
from manyhands.store.filesystem import filesystem, is_network

APPLICATION_ID = 0x6D68_6A31
FORMAT = 1

# Rows of every kind share one sequence of ids, given by the journal: an id is a position in the run's
# history. `rolled_back` is 0, or the incarnation that voided the row. `at` is milliseconds since 1970.
_SCHEMA = """
CREATE TABLE incarnation (number INTEGER PRIMARY KEY, at INTEGER NOT NULL, first_row INTEGER NOT NULL);
CREATE TABLE node (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE);
CREATE TABLE credit (
    id INTEGER PRIMARY KEY, step INTEGER NOT NULL, epoch INTEGER NOT NULL, leaf INTEGER NOT NULL,
    node INTEGER NOT NULL REFERENCES node(number), lease INTEGER NOT NULL, samples INTEGER NOT NULL,
    first INTEGER NOT NULL, rolled_back INTEGER NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX credited_once ON credit (step, leaf) WHERE rolled_back = 0;
CREATE TABLE step (
    id INTEGER PRIMARY KEY, step INTEGER NOT NULL, epoch INTEGER NOT NULL, samples INTEGER NOT NULL,
    loss REAL, weights_hash TEXT, at INTEGER NOT NULL, rolled_back INTEGER NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX committed_once ON step (step) WHERE rolled_back = 0;
CREATE TABLE quarantine (
    id INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, item INTEGER NOT NULL, reason TEXT NOT NULL,
    at INTEGER NOT NULL, rolled_back INTEGER NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX quarantined_once ON quarantine (item) WHERE rolled_back = 0;
CREATE TABLE refusal (id INTEGER PRIMARY KEY, reason TEXT NOT NULL, node TEXT NOT NULL, at INTEGER NOT NULL);
CREATE TABLE roster (
    id INTEGER PRIMARY KEY, node INTEGER NOT NULL REFERENCES node(number), name TEXT NOT NULL,
    event TEXT NOT NULL, at INTEGER NOT NULL);
"""
VOIDABLE = ("credit", "step", "quarantine")
TABLES = (*VOIDABLE, "refusal", "roster")


class RunLock:
    """One coordinator a run: a lock on a side file, which ends with the process however it ends.

    A POSIX record lock, because a forked child (a data worker that outlives its parent by seconds) does not
    inherit it, and a coordinator must be able to come back at once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def take(self) -> None:
        """Hold the lock; `UsageError` names the process that has it."""
        with storage(self._path, "open the lock file"):
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = os.pread(file, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(file)
            raise UsageError(
                f"the run in {self._path.parent} is open in process {holder}; stop that one first, "
                "or start a new run"
            ) from error
        except OSError:
            # No locks on this file system: the incarnation number still fences a second coordinator.
            os.close(file)
            return
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        self._file = file

    def release(self) -> None:
        """Let another coordinator have the run; safe to call twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def connect(path: Path) -> tuple[sqlite3.Connection, str | None]:
    """Open or create the journal at `path` for writing.

    Returns the connection and a note: None with a write-ahead log, else a sentence that says why not.
    Raises `StorageError` when the file is damaged, is not a journal, or cannot be written.
    """
    with storage(path, "create the folder of the journal"):
        path.parent.mkdir(parents=True, exist_ok=True)
    existed = path.exists()
    kind = filesystem(path.parent)
    try:
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    except sqlite3.Error as error:
        raise failed(path, "open", error) from error
    try:
        _check(database, path)
        note = _choose_mode(database, kind)
        database.execute("PRAGMA synchronous = FULL")
        database.execute(
            "PRAGMA cache_size = -256"
        )  # KiB; the ledger is appended to, 2 MB of cache is never read
        _create(database)
    except sqlite3.Error as error:
        database.close()
        raise failed(path, "open", error) from error
    except StorageError:
        database.close()
        raise
    if not existed:
        with storage(path, "flush the folder of the journal"):
            sync(path.parent)
    return database, note


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open an existing journal without the right to write; raises `StorageError`."""
    if not path.is_file():
        raise StorageError(f"there is no journal at {path}", str(path))
    database: sqlite3.Connection | None = None
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
        _check(database, path)
    except sqlite3.Error as error:
        raise failed(path, "read", error) from error
    return database


def failed(path: Path, doing: str, error: sqlite3.Error) -> StorageError:
    """SQLite's own words, the path, and what to do next."""
    words = str(error)
    if "full" in words or "disk I/O" in words:
        advice = "free some space or move the checkpoint folder, then start again with resume"
    elif "malformed" in words or "not a database" in words:
        advice = "restore it from a copy, or move it away and start a new run"
    elif "locked" in words:
        advice = "another process holds it; stop that one"
    else:
        advice = "check the disk and the permissions of the folder"
    return StorageError(f"could not {doing} the journal {path}: {words}; {advice}", str(path))


def _check(database: sqlite3.Connection, path: Path) -> None:
    identity = int(database.execute("PRAGMA application_id").fetchone()[0])
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    tables = int(database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    if identity != APPLICATION_ID and (identity or tables):
        raise StorageError(f"{path} is a database, but no journal; choose another folder", str(path))
    if version > FORMAT:
        raise StorageError(
            f"the journal {path} has format {version}, this version reads up to {FORMAT}; update manyhands",
            str(path),
        )
    verdict = str(database.execute("PRAGMA quick_check(1)").fetchone()[0])
    if verdict != "ok":
        raise StorageError(
            f"the journal {path} is damaged: {verdict}; restore it from a copy, or move it away and "
            "start a new run",
            str(path),
        )


def _choose_mode(database: sqlite3.Connection, kind: str) -> str | None:
    why = f"it lies on a network file system ({kind})"
    if not is_network(kind):
        try:
            if database.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal":
                return None
            why = f"its file system ({kind}) has no shared memory"
        except sqlite3.OperationalError as error:
            why = str(error)
    database.execute("PRAGMA journal_mode = DELETE")
    return f"the journal is kept without a write-ahead log: {why}; commits are slower, nothing is less safe"


def _create(database: sqlite3.Connection) -> None:
    if database.execute("PRAGMA user_version").fetchone()[0]:
        return
    database.executescript(
        f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {APPLICATION_ID}; "
        f"PRAGMA user_version = {FORMAT}; COMMIT;"
    )
