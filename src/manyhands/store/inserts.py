"""Turns ledger rows into SQL statements, one a kind, and names a row that is there already.

Knows the tables, no threads and no files. (Sending many rows in one statement was tried against
`executemany`: 1.5 against 1.7 microseconds a row, and no better beside a busy interpreter.)
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence

from manyhands.store.rows import Commit, Credit, Quarantine, Refusal, Roster, Row

_TEXT_CHARS = 300

Values = tuple[int | float | str | None, ...]


class Batch:
    """The SQL of one transaction; `number_of` gives a node key's small number."""

    def __init__(self, first_id: int, at_milliseconds: int, number_of: Callable[[str], int]) -> None:
        self._id = first_id
        self._at = at_milliseconds
        self._number_of = number_of
        self._values: dict[str, list[Values]] = {}

    def add(self, row: Row) -> None:
        """Give the row the next id and its table."""
        table, values = self._columns(row)
        self._values.setdefault(table, []).append((self._id, *values))
        self._id += 1

    def _columns(self, row: Row) -> tuple[str, Values]:
        match row:
            case Credit():
                node = self._number_of(row.node_key)
                leaf = (row.step, row.epoch, row.leaf, node)
                share = (row.lease, row.samples, row.first_sample_position)
                return "credit(id, step, epoch, leaf, node, lease, samples, first)", (*leaf, *share)
            case Commit():
                step = (row.step, row.epoch, row.samples, row.loss, row.weights_hash, self._at)
                return "step(id, step, epoch, samples, loss, weights_hash, at)", step
            case Quarantine():
                return "quarantine(id, epoch, item, reason, at)", (
                    row.epoch,
                    row.index,
                    row.reason[:_TEXT_CHARS],
                    self._at,
                )
            case Refusal():
                text = (row.reason[:_TEXT_CHARS], row.node[:_TEXT_CHARS], self._at)
                return "refusal(id, reason, node, at)", text
            case Roster():
                node = self._number_of(row.node_key)
                return "roster(id, node, name, event, at)", (
                    node,
                    row.name[:_TEXT_CHARS],
                    row.event[:_TEXT_CHARS],
                    self._at,
                )

    def statements(self) -> Iterator[tuple[str, list[Values]]]:
        """(SQL, rows of values) pairs; together they insert every added row."""
        for table, rows in self._values.items():
            marks = ", ".join("?" * len(rows[0]))
            yield f"INSERT INTO {table} VALUES ({marks})", rows  # noqa: S608


def first_repeat(
    rows: Sequence[Row], credited: Callable[[int], Container[int]], committed: Callable[[int], bool]
) -> str | None:
    """Name the first leaf or step of `rows` that the ledger, or `rows` itself, has already; None if none is.

    `credited(step)` gives the leaves that have a live credit, `committed(step)` whether the step has a row.
    """
    seen: set[tuple[int, int | None]] = set()
    for row in rows:
        if isinstance(row, Credit):
            if (row.step, row.leaf) in seen or row.leaf in credited(row.step):
                return f"step {row.step}, leaf {row.leaf} is credited already"
            seen.add((row.step, row.leaf))
        elif isinstance(row, Commit):
            if (row.step, None) in seen or committed(row.step):
                return f"step {row.step} is committed already"
            seen.add((row.step, None))
    return None
