"""Makes text from a stranger safe to show: on a terminal, in a table, in a file, on a page.

A peer chooses its own name. It must not move the cursor, colour the screen, close a tag, start a
spreadsheet formula, or pose as another by invisible characters. Pure.
"""

from __future__ import annotations

import unicodedata

_NAME_PUNCTUATION = frozenset(" ._-:#()/…")
_MARKS_IN_A_ROW = 2


def clean_name(text: str, max: int = 64) -> str:  # noqa: A002 - reads as a sentence: clean_name(name, max=20)
    """A short name of letters, digits, spaces and `._-:#()/` in any script; others become `_`.

    At most `max` characters, the last one an ellipsis where it was cut; "unnamed" where nothing is left.
    """
    kept: list[str] = []
    marks = 0
    for character in unicodedata.normalize("NFC", text[: 4 * max]):
        is_mark = unicodedata.category(character)[0] == "M"
        marks = marks + 1 if is_mark else 0
        if is_mark and (marks > _MARKS_IN_A_ROW or not kept):
            continue
        allowed = is_mark or character.isalnum() or character in _NAME_PUNCTUATION
        kept.append(character if allowed else " " if character.isspace() else "_")
    name = " ".join("".join(kept).split()).lstrip("-")
    if not any(character.isalnum() for character in name):
        return "unnamed"
    return _cut(name, max)


def clean_line(text: str, max: int = 300) -> str:  # noqa: A002 - as above
    """One printable line of a stranger's sentence: control and invisible characters become `?`.

    Punctuation stays, so print it without markup.
    """
    one_line = " ".join(text[: 4 * max].split())
    return _cut("".join(c if c == " " or c.isprintable() else "?" for c in one_line), max)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
