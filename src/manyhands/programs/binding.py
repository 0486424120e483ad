"""Which argument of a node stands for which parameter of its operator's row.

Both the parser, which judges arguments one by one, and the dry run, which computes with them, must see the
same pairs; so they are made here, once. Text of a node is compared with names of our own table, never looked
up in a module.
"""

from __future__ import annotations

from collections.abc import Iterator

from manyhands.errors import ProgramRefused
from manyhands.programs.format import Argument, Node
from manyhands.programs.operators.row import REQUIRED, Parameter, Row


def bind(row: Row, node: Node) -> Iterator[tuple[Parameter, Argument]]:
    """Each given argument with its parameter, in the row's order; ProgramRefused where one has no place.

    Parameters that take their default are left out.
    """
    positional = [parameter for parameter in row.parameters if not parameter.keyword_only]
    if len(node.args) > len(positional):
        raise ProgramRefused(f"{len(node.args)} arguments where at most {len(positional)} are taken")
    given: dict[str, Argument] = {
        parameter.name: argument for parameter, argument in zip(positional, node.args, strict=False)
    }
    names = {parameter.name for parameter in row.parameters}
    for keyword in node.kwargs:
        if keyword.name not in names or keyword.name in given:
            raise ProgramRefused(f"keyword {keyword.name[:40]!r} is unknown or given twice")
        given[keyword.name] = keyword.value
    for parameter in row.parameters:
        if parameter.name in given:
            yield parameter, given[parameter.name]
        elif parameter.default is REQUIRED:
            raise ProgramRefused(f"{parameter.name} is missing")
