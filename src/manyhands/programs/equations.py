"""Einsum equations written out: no spaces, no ellipsis, the arrow there.

A program holds only letters, commas and one arrow, so that what a node reads needs no grammar.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters
from typing import Final

_ELLIPSIS: Final = "..."


def explicit(equation: str, ranks: Sequence[int]) -> str:
    """`equation` for operands of these numbers of dimensions, as torch reads it.

    Without an arrow the result has the ellipsis, then the letters that occur once, sorted. Operands of fewer
    dimensions under the ellipsis share its last ones.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(_ELLIPSIS, "").replace(",", "")
        right = (_ELLIPSIS if _ELLIPSIS in left else "") + "".join(
            sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        )
    widths = [
        rank - len(term.replace(_ELLIPSIS, "")) if _ELLIPSIS in term else 0
        for term, rank in zip(terms, ranks, strict=True)
    ]
    free = [letter for letter in ascii_letters if letter not in equation]
    shared = "".join(free[: max(widths, default=0)])
    written = [
        term.replace(_ELLIPSIS, shared[len(shared) - width :])
        for term, width in zip(terms, widths, strict=True)
    ]
    return ",".join(written) + "->" + right.replace(_ELLIPSIS, shared)
