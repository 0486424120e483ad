"""Reads a run's journal: who computed which samples, what was applied, left out and refused.

Every number leaves out the rows that a resume voided, unless its name says otherwise. Works beside a
running coordinator, from another process. Knows nothing of how rows are written.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from manyhands.errors import StorageError
from manyhands.store.database import TABLES, VOIDABLE, connect_to_read, failed

_OVERLAP = """
SELECT epoch, first, samples, next FROM (
    SELECT epoch, first, samples, lead(first) OVER (PARTITION BY epoch ORDER BY first) AS next
    FROM credit WHERE rolled_back = 0)
WHERE first + samples > next LIMIT 10
"""
_UNBALANCED = """
SELECT step.step, step.samples, coalesce(sum(credit.samples), 0) AS credited
FROM step LEFT JOIN credit ON credit.step = step.step AND credit.rolled_back = 0
WHERE step.rolled_back = 0 GROUP BY step.id HAVING credited != step.samples LIMIT 10
"""


class Counts(msgspec.Struct, frozen=True):
    """What the journal holds, in rows; `rolled_back` are the voided ones of every kind."""

    steps: int
    credits: int
    quarantined: int
    refused: int
    nodes: int
    incarnations: int
    rolled_back: int


class Ledger:
    """The questions a journal answers; use as a context manager, or `open` and `close`.

    Safe to share between threads. Every question may raise `StorageError`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def open(self) -> str | None:
        """Open for reading; raises `StorageError` where there is no journal, or a damaged one."""
        self._database = connect_to_read(self.path)
        return None

    def close(self) -> None:
        """Close the file; safe to call twice."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def samples_applied(self) -> int:
        """Samples credited in the whole run, each time they were applied."""
        return int(self._one("SELECT coalesce(sum(samples), 0) FROM credit WHERE rolled_back = 0"))

    def credits(self, epoch: int | None = None) -> dict[str, int]:
        """Samples per node key, in one epoch or in the run."""
        where = "" if epoch is None else "AND epoch = ?"
        rows = self._ask(
            f"SELECT node.key, sum(samples) FROM credit JOIN node ON node.number = credit.node "  # noqa: S608
            f"WHERE rolled_back = 0 {where} GROUP BY node.number ORDER BY node.key",
            *(() if epoch is None else (epoch,)),
        )
        return {str(key): int(samples) for key, samples in rows}

    def who(self, step: int) -> dict[int, str]:
        """The node key credited with each leaf of a step; empty for a step that is not committed."""
        rows = self._ask(
            "SELECT leaf, node.key FROM credit JOIN node ON node.number = credit.node "
            "WHERE step = ? AND rolled_back = 0 ORDER BY leaf",
            step,
        )
        return {int(leaf): str(key) for leaf, key in rows}

    def who_computed(self, epoch: int, position: int) -> str | None:
        """The key of the node credited with one place of an epoch's order, None if nobody is yet."""
        rows = self._ask(
            "SELECT node.key FROM credit JOIN node ON node.number = credit.node "
            "WHERE epoch = ? AND first <= ? AND ? < first + samples AND rolled_back = 0",
            epoch,
            position,
            position,
        )
        return str(rows[0][0]) if rows else None

    def quarantined(self) -> set[int]:
        """Dataset indices that the run leaves out."""
        return {int(row[0]) for row in self._ask("SELECT item FROM quarantine WHERE rolled_back = 0")}

    def weights_hashes(self) -> dict[int, str]:
        """Step to the hash of the weights after it, where one was taken: compare two runs to bisect."""
        rows = self._ask(
            "SELECT step, weights_hash FROM step "
            "WHERE weights_hash IS NOT NULL AND rolled_back = 0 ORDER BY step"
        )
        return {int(step): str(value) for step, value in rows}

    def losses(self, last: int = 100) -> list[tuple[int, float]]:
        """(step, loss) of the `last` committed steps, oldest first; NaN where the loss was not a number."""
        rows = self._ask("SELECT step, loss FROM step WHERE rolled_back = 0 ORDER BY id DESC LIMIT ?", last)
        return [(int(step), float("nan") if loss is None else float(loss)) for step, loss in reversed(rows)]

    def counts(self) -> Counts:
        """How many rows of each kind there are."""
        live = {table: self._rows(table, "rolled_back = 0") for table in VOIDABLE}
        return Counts(
            steps=live["step"],
            credits=live["credit"],
            quarantined=live["quarantine"],
            refused=self._rows("refusal"),
            nodes=int(self._one("SELECT count(DISTINCT node) FROM roster")),
            incarnations=self._rows("incarnation"),
            rolled_back=sum(self._rows(table, "rolled_back != 0") for table in VOIDABLE),
        )

    def audit(self) -> list[str]:
        """Contradictions in the ledger, a sentence each (at most 20); empty when every sample counts once."""
        found = [
            f"step {step} applied {samples} samples, its credits sum to {credited}"
            for step, samples, credited in self._ask(_UNBALANCED)
        ]
        found += [
            f"epoch {epoch}: the leaf at {first} covers {samples} samples, runs into the one at {following}"
            for epoch, first, samples, following in self._ask(_OVERLAP)
        ]
        return found

    def last_row(self) -> int:
        """The highest row id of any kind, 0 in an empty journal."""
        return max(int(self._one(f"SELECT coalesce(max(id), 0) FROM {table}")) for table in TABLES)  # noqa: S608

    def _rows(self, table: str, where: str = "1") -> int:
        return int(self._one(f"SELECT count(*) FROM {table} WHERE {where}"))  # noqa: S608

    def _one(self, sql: str) -> Any:
        return self._ask(sql)[0][0]

    def _ask(self, sql: str, *values: int) -> list[Any]:
        with self._lock:
            if self._database is None:
                raise StorageError(f"the journal {self.path} is not open", str(self.path))
            try:
                return self._database.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise failed(self.path, "read", error) from error
