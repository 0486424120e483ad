"""The closed table of operators that programs may use, one file a family.

Every row is an ATen *forward* overload or arithmetic on sizes. None is a ``_backward``, ``native_``, ``empty``
or ``resize`` operator, writes to ``out=``, reads or writes files, takes a stride or a storage from its caller,
or returns a shape that depends on values.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from manyhands.programs.operators import (
    attention,
    convolution,
    creation,
    indexing,
    integers,
    loss,
    matmul,
    normalization,
    pointwise,
    random,
    recurrent,
    reduction,
    shape,
)
from manyhands.programs.operators.row import Row

_FAMILIES: Final = (
    *(pointwise.ROWS, shape.ROWS, reduction.ROWS, matmul.ROWS, convolution.ROWS, normalization.ROWS),
    *(recurrent.ROWS, attention.ROWS, indexing.ROWS, loss.ROWS, creation.ROWS, random.ROWS, integers.ROWS),
)

TABLE: Final[Mapping[str, Row]] = MappingProxyType({row.key: row for family in _FAMILIES for row in family})
"""Operator key to row; built once at import from names in our own source, and frozen."""
