"""The ledger of one run, written behind: recording a step costs microseconds, a thread makes it durable.

::

    record ──▶ pending rows in memory ──▶ writer thread, one transaction per 50 ms or 4,000 rows ──▶ SQLite
    flush, position, begin_incarnation, every question: wait until the disk has all of it

What is lost in a crash is at most the last batch, and always a suffix: the rows of one `record` call live or
die together. A checkpoint names `position()`; resuming calls `rollback_to` with it, so rows and weights
agree whatever was written between. Knows nothing of leases or weights.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from manyhands.clock import Clock
from manyhands.errors import ManyhandsError, RunFailed, StorageError
from manyhands.store.database import VOIDABLE, RunLock, connect, failed
from manyhands.store.inserts import Batch, Values, first_repeat
from manyhands.store.ledger import Ledger
from manyhands.store.rows import Credit, Row

BATCH_SECONDS = 0.05
BATCH_ROWS = 4_000
PENDING_ROWS = 100_000


class Journal(Ledger):
    """Writes and reads `RUN/journal.sqlite`; one process at a time may have it open.

    Safe to share between threads. Every method may raise `StorageError` (a disk failed, now or in the
    writer thread before) or `RunFailed` (a row contradicts the ledger); after either, nothing more is
    written, and what was durable stays.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__(path)
        self._clock = clock
        self._owner = RunLock(path.with_name(path.name + "-lock"))
        self._nodes: dict[str, int] = {}
        self._last = self._applied = 0
        self._incarnation = 0
        self._pending: list[Row] = []
        self._recorded = self._written = 0
        self._urgent = self._closing = False
        self._error: ManyhandsError | None = None
        state = threading.Lock()
        self._work, self._done = threading.Condition(state), threading.Condition(state)
        self._thread: threading.Thread | None = None

    def open(self) -> str | None:
        """Open or create the file; returns a note if there can be no write-ahead log, else None.

        Raises `UsageError` if another process has the run open, `StorageError` naming a damaged file.
        """
        if self._database is not None:
            raise StorageError(f"the journal {self.path} is open already", str(self.path))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._owner.take()
        try:
            self._database, note = connect(self.path)
            self._last = self.last_row()
            self._applied = super().samples_applied()
            self._nodes = {str(key): int(number) for number, key in self._ask("SELECT number, key FROM node")}
        except ManyhandsError:
            self._owner.release()
            raise
        self._closing = False
        self._thread = threading.Thread(target=self._write_behind, name="manyhands-journal", daemon=True)
        self._thread.start()
        return note

    def begin_incarnation(self) -> int:
        """A number greater than any this journal gave before, on the disk before it returns (1, 2, ...).

        Fences start with it, so that no answer to an earlier coordinator is mistaken for one to this.
        """
        self.flush()
        now = int(self._clock.time() * 1000)
        number = "INSERT INTO incarnation SELECT coalesce(max(number), 0) + 1, ?, ? FROM incarnation"
        self._execute([(number, [(now, self._last + 1)])])
        self._incarnation = int(self._one("SELECT max(number) FROM incarnation"))
        return self._incarnation

    def record(self, rows: Sequence[Row]) -> None:
        """Append rows, all or none of them; returns at once unless 100,000 wait for the disk.

        A leaf credited twice, or a step committed twice, surfaces as `RunFailed` at a later call.
        """
        with self._work:
            if len(self._pending) >= PENDING_ROWS:
                self._wait_for_room()
            if self._error is not None or self._closing or self._thread is None:
                raise self._refusal()
            waiting = len(self._pending)
            self._pending.extend(rows)
            self._recorded += len(rows)
            if not waiting or waiting < BATCH_ROWS <= len(self._pending):
                self._work.notify()

    def flush(self) -> None:
        """Return when every recorded row is on the disk."""
        with self._work:
            self._urgent = True
            self._work.notify()
            target = self._recorded
            self._done.wait_for(lambda: self._written >= target or self._stopped())
            if self._written < target or self._error is not None:
                raise self._refusal()

    def position(self) -> int:
        """The last row's id, with every row up to it on the disk: what a checkpoint names."""
        self.flush()
        return self._last

    def rollback_to(self, position: int) -> int:
        """Void the credits, commits and quarantines after `position`; returns how many.

        They stay in the file, marked with the incarnation that voided them. Refusals and the roster are
        history whatever the weights are, and stay as they are. Raises `StorageError` if the journal ends
        before `position`.
        """
        self.flush()
        if position > self._last:
            raise StorageError(
                f"the checkpoint belongs to row {position} of the journal {self.path}, which ends at row "
                f"{self._last}; restore the journal beside its checkpoint, or start a new run",
                str(self.path),
            )
        by = max(1, self._incarnation)
        void = "UPDATE {} SET rolled_back = ? WHERE id > ? AND rolled_back = 0"
        voided = self._execute([(void.format(table), [(by, position)]) for table in VOIDABLE])
        self._applied = super().samples_applied()
        return voided

    def samples_applied(self) -> int:
        """Samples credited in the whole run, all recorded rows included; answers when closed too."""
        self.flush()
        return self._applied

    def close(self) -> None:
        """Flush, then give the run back; safe to call twice. An error of the writer is raised at the end."""
        with self._work:
            self._closing = True
            self._work.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        super().close()
        self._owner.release()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _ask(self, sql: str, *values: int) -> list[Any]:
        if self._thread is not None and threading.current_thread() is not self._thread:
            self.flush()
        return super()._ask(sql, *values)

    def _execute(self, statements: Iterable[tuple[str, Sequence[Values]]]) -> int:
        """Run them as one transaction, durable when it returns; the number of rows changed."""
        with self._lock:
            if self._database is None:
                raise StorageError(f"the journal {self.path} is not open", str(self.path))
            try:
                return self._transact(self._database, statements)
            except sqlite3.Error as error:
                raise failed(self.path, "write", error) from error

    @staticmethod
    def _transact(database: sqlite3.Connection, statements: Iterable[tuple[str, Sequence[Values]]]) -> int:
        database.execute("BEGIN IMMEDIATE")
        try:
            changed = sum(database.executemany(sql, rows).rowcount for sql, rows in statements)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        return changed

    def _stopped(self) -> bool:
        return self._error is not None or self._thread is None

    def _refusal(self) -> ManyhandsError:
        return self._error or StorageError(f"the journal {self.path} is not open", str(self.path))

    def _wait_for_room(self) -> None:
        self._urgent = True
        self._work.notify()
        self._done.wait_for(lambda: len(self._pending) < PENDING_ROWS or self._stopped())

    def _write_behind(self) -> None:
        while (rows := self._next_batch()) is not None:
            error: ManyhandsError | None = None
            try:
                self._write(rows)
            except sqlite3.IntegrityError as refused:
                error = self._contradiction(rows, refused)
            except sqlite3.Error as broken:
                error = failed(self.path, "write", broken)
            except Exception as wrong:  # noqa: BLE001 - the thread's edge: the caller must hear of it
                error = RunFailed(f"a ledger row could not be written to {self.path}: {wrong!r}")
            with self._work:
                self._error = error
                self._written += 0 if error else len(rows)
                self._done.notify_all()
            if error:
                return

    def _next_batch(self) -> list[Row] | None:
        with self._work:
            self._work.wait_for(lambda: self._pending or self._closing)
            self._work.wait_for(
                lambda: self._urgent or self._closing or len(self._pending) >= BATCH_ROWS, BATCH_SECONDS
            )
            rows, self._pending = self._pending, []
            self._urgent = False
            self._done.notify_all()
            return rows or None

    def _write(self, rows: list[Row]) -> None:
        with self._lock:
            database = self._database
            assert database is not None
            batch = Batch(self._last + 1, int(self._clock.time() * 1000), self._number_of)
            self._transact(database, self._statements(batch, rows))
            self._last += len(rows)
            self._applied += sum(row.samples for row in rows if isinstance(row, Credit))

    @staticmethod
    def _statements(batch: Batch, rows: list[Row]) -> Iterator[tuple[str, list[Values]]]:
        for row in rows:
            batch.add(row)
        yield from batch.statements()

    def _number_of(self, key: str) -> int:
        number = self._nodes.get(key)
        if number is None:
            number = len(self._nodes) + 1
            assert self._database is not None
            self._database.execute("INSERT INTO node VALUES (?, ?)", (number, key))
            self._nodes[key] = number
        return number

    def _contradiction(self, rows: list[Row], refused: sqlite3.IntegrityError) -> RunFailed:
        """Name the row that the ledger already has, so that the bug can be found."""
        repeated = first_repeat(rows, self.who, self._committed)
        return RunFailed(
            f"the ledger {self.path} refused a row: {repeated or refused}; a fault of the coordinator, "
            "nothing was counted twice"
        )

    def _committed(self, step: int) -> bool:
        return bool(self._ask("SELECT 1 FROM step WHERE step = ? AND rolled_back = 0", step))
