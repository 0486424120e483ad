"""Named tuples that arrive from elsewhere, made without running anything a peer wrote.

``collections.namedtuple`` builds source text from the field names and evaluates it, so it must never see
a received name. :func:`row_class` makes a class from plain data instead. Knows nothing of tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from operator import itemgetter
from typing import Any, ClassVar, Final

from manyhands.errors import UsageError

MAX_FIELDS: Final = 1024
MAX_FIELD_CHARACTERS: Final = 128
_POSITIONAL: Final = re.compile(r"_[0-9]{1,4}")  # what namedtuple(rename=True) makes of a bad name


class NamedRow(tuple[Any, ...]):
    """A tuple whose items have names: what a named tuple of the other side arrives as.

    It reads like one (``row.name``, ``_fields``, ``_asdict``, ``_replace``, ``type(row)(*items)``) and equals
    a tuple of the same items. Each set of names has a class of its own, made by :func:`row_class`.
    """

    __slots__ = ()
    _fields: ClassVar[tuple[str, ...]] = ()

    def __new__(cls, *items: Any) -> NamedRow:
        """One item for each field, in order; UsageError where the counts differ."""
        if len(items) != len(cls._fields):
            raise UsageError(f"a row of {len(cls._fields)} fields {cls._fields} got {len(items)} items")
        return super().__new__(cls, items)

    @classmethod
    def _make(cls, items: Iterable[Any]) -> NamedRow:
        return cls(*items)

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))

    def _replace(self, **changes: Any) -> NamedRow:
        if unknown := changes.keys() - set(self._fields):
            raise UsageError(f"a row of fields {self._fields} has no {sorted(unknown)}")
        return type(self)(*({**self._asdict(), **changes}[name] for name in self._fields))

    def __repr__(self) -> str:
        return f"NamedRow({', '.join(f'{name}={item!r}' for name, item in self._asdict().items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return named_row, (self._fields, tuple(self))


def named_row(fields: Iterable[str], items: Iterable[Any]) -> NamedRow:
    """A row of `items` named by `fields`; UsageError where the names will not do or the counts differ."""
    return row_class(tuple(fields))(*items)


@lru_cache(maxsize=256)
def row_class(fields: tuple[str, ...]) -> type[NamedRow]:
    """The class of rows with these field names, in this order."""
    if problem := field_problem(fields):
        raise UsageError(problem)
    members: Mapping[str, Any] = {name: property(itemgetter(at)) for at, name in enumerate(fields)}
    return type("NamedRow", (NamedRow,), {"__slots__": (), "_fields": fields, **members})


def field_problem(fields: tuple[str, ...]) -> str | None:
    """Why these cannot name the items of a row, as a sentence; None where they can.

    Names are unique identifiers of at most 128 characters without a leading underscore (so that none can
    stand in for a method), or ``_0``, ``_1`` and so on.
    """
    if len(fields) > MAX_FIELDS:
        return f"a row has {len(fields)} fields; at most {MAX_FIELDS} may travel"
    if len(set(fields)) != len(fields):
        return f"a row names a field twice: {fields}"
    for name in fields:
        if len(name) > MAX_FIELD_CHARACTERS:
            return f"a row's field name has {len(name)} characters; at most {MAX_FIELD_CHARACTERS} may travel"
        if not _POSITIONAL.fullmatch(name) and (name.startswith("_") or not name.isidentifier()):
            return f"a row's field is named {name!r}, which is not a public identifier"
    return None
