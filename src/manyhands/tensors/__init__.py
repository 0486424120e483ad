"""Nested tensors to bytes and back: frames for batches, layouts for what both sides know.

Start with :mod:`~manyhands.tensors.frame`. Nothing here knows sockets, streams or training.
"""

from manyhands.tensors.frame import MAX_FRAME_BYTES, Frame, decode, encode
from manyhands.tensors.layout import Layout, TensorSpec, WireSpec, WireSpecs
from manyhands.tensors.memory import allocate, bytes_of
from manyhands.tensors.nest import flatten, unflatten
from manyhands.tensors.rows import NamedRow, named_row
from manyhands.tensors.structure import Structure

__all__ = [
    "MAX_FRAME_BYTES",
    "Frame",
    "Layout",
    "NamedRow",
    "Structure",
    "TensorSpec",
    "WireSpec",
    "WireSpecs",
    "allocate",
    "bytes_of",
    "decode",
    "encode",
    "flatten",
    "named_row",
    "unflatten",
]
