"""Self-contained frames: a nested batch as bytes that say themselves what they are.

::

    0      4        6          8             12     16          24          body_start        end
    | magic| version|  flags   | schema bytes| crc32| body bytes| schema, 0s| t0, 0s, t1 ...  |
      "MHfr"  u16      u16=0,1      u32         u32      u64      MessagePack   raw elements

Little-endian. The body and every tensor in it begin at a multiple of 64 bytes, gaps are zero, and crc32
covers all that follows the header; with flags 1 only the schema and its zeros: each record of a TLS stream is
authenticated anyway, and a crc of every element took as long as the encryption (2 GB/s here). Offsets and
element counts are not sent: they follow from dtypes, shapes and order, so a frame can have no hole and no
overlap, and cannot lie about either. Strides are sent where a tensor is dense but not contiguous
(channels_last, transposed). Reading checks everything before it allocates anything. Rules after safetensors'
format page; knows no sockets, and what a batch means is not its business.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from manyhands.errors import ProtocolError, UsageError
from manyhands.tensors import dtypes, memory
from manyhands.tensors.layout import MAX_BYTES, MAX_DIMS, shape_problem
from manyhands.tensors.memory import num_elements, padded
from manyhands.tensors.nest import flatten
from manyhands.tensors.structure import Row, Seq, Slot, Structure, Table, check, rebuild

MAGIC: Final = b"MHfr"
VERSION: Final = 1
MAX_FRAME_BYTES: Final = 1 << 30
MAX_SCHEMA_BYTES: Final = 16 << 20
MAX_TENSORS: Final = 100_000
MAX_KEPT_SCHEMA_BYTES: Final = 4096
"""Larger schemas are read anew each time: what is kept of a peer's must be small."""
MAX_KEPT_NODES: Final = 64
"""Larger trees are written anew each time."""
_HEADER: Final = struct.Struct("<4sHHIIQ")
HEADER_BYTES: Final = _HEADER.size
BODY_UNCHECKED: Final = 1
"""The flag of a frame whose crc32 covers its schema only."""

Data = bytes | bytearray | memoryview | Tensor
_Count = Annotated[int, Meta(ge=0, le=MAX_BYTES)]


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One tensor of a frame: dtype by name, shape, and strides in elements where they are not contiguous."""

    dtype: Annotated[str, Meta(max_length=32)]
    shape: Annotated[tuple[_Count, ...], Meta(max_length=MAX_DIMS)]
    strides: Annotated[tuple[_Count, ...], Meta(max_length=MAX_DIMS)] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of its elements; the dtype must be known."""
        return num_elements(self.shape) * dtypes.DTYPES[self.dtype].itemsize


class Schema(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a frame says about its body: the tree, and its tensors in the order of their slots."""

    structure: Structure
    entries: Annotated[tuple[Entry, ...], Meta(max_length=MAX_TENSORS)]


_SCHEMA_ENCODER: Final = msgspec.msgpack.Encoder()
_SCHEMA_DECODER: Final = msgspec.msgpack.Decoder(Schema)


@dataclass(frozen=True)
class Frame:
    """An encoded tree whose tensors are still where they were: leave them as they are until it is sent.

    `num_bytes` is its whole size. A tensor that changes after :func:`encode` makes the crc32 wrong.
    """

    num_bytes: int
    _parts: tuple[bytes | memoryview, ...]

    def parts(self) -> list[bytes | memoryview]:
        """The frame's bytes in order, none of them copied from a dense tensor."""
        return list(self._parts)

    def to_bytes(self) -> bytes:
        """The frame in one piece; one copy."""
        return b"".join(self._parts)


def encode(tree: Any, *, checks_body: bool = True) -> Frame:
    """The frame of a nested batch; see :func:`~manyhands.tensors.nest.flatten` for what a tree may hold.

    Without `checks_body` the crc32 leaves the tensors' bytes to whatever carries them.

    Dense CPU tensors are not copied, others once. Gradients and graphs stay behind; a tensor that stands
    in two places is sent twice. UsageError where something cannot travel.
    """
    structure, leaves = flatten(tree)
    if len(leaves) > MAX_TENSORS:
        raise UsageError(
            f"a batch of {len(leaves)} tensors; at most {MAX_TENSORS} may travel: stack some of them"
        )
    tensors = [memory.densified(leaf) for leaf in leaves]
    entries = tuple([_entry(t.dtype, t.shape, t.stride()) for t in tensors])
    schema_bytes, head = (_head if _is_kept(structure) else _head.__wrapped__)(structure, entries)
    parts: list[bytes | memoryview] = [head]
    body_bytes = 0
    for tensor in tensors:
        if gap := -body_bytes % memory.ALIGNMENT:
            parts.append(bytes(gap))
        parts.append(memory.bytes_of(tensor))
        body_bytes += gap + len(parts[-1])
    crc = 0
    for part in parts if checks_body else parts[:1]:
        crc = zlib.crc32(part, crc)
    flags = 0 if checks_body else BODY_UNCHECKED
    header = _HEADER.pack(MAGIC, VERSION, flags, schema_bytes, crc, body_bytes)
    return Frame(HEADER_BYTES + len(head) + body_bytes, (header, *parts))


def _is_kept(structure: Structure) -> bool:
    """Whether equal structures are the same one: 1, 1.0 and True are equal and not the same."""
    nodes = structure.nodes
    return len(nodes) <= MAX_KEPT_NODES and all(
        isinstance(node, Slot | Seq | Row | str)
        or (isinstance(node, Table) and all(isinstance(key, str) for key in node.keys))
        for node in nodes
    )


@lru_cache(maxsize=64)
def _head(structure: Structure, entries: tuple[Entry, ...]) -> tuple[int, bytes]:
    """How many bytes a schema has, and it with its padding; most batches of a stream have the same one."""
    schema = _SCHEMA_ENCODER.encode(Schema(structure, entries))
    if len(schema) > MAX_SCHEMA_BYTES:
        raise UsageError(
            f"a batch without its tensors takes {len(schema)} bytes; at most {MAX_SCHEMA_BYTES} may travel: "
            "put numbers into tensors"
        )
    return len(schema), schema + bytes(padded(HEADER_BYTES + len(schema)) - HEADER_BYTES - len(schema))


def decode(data: Data, *, max_bytes: int = MAX_FRAME_BYTES) -> Any:
    """The tree that `data`, one whole frame, holds; its tensors are writable and 64-byte aligned.

    They are parts of `data` itself where that is writable and begins at a multiple of 64 bytes (such as a
    uint8 tensor of :func:`~manyhands.tensors.memory.allocate`), and then live as long as any of them does;
    else the body is copied once. ProtocolError where `data` is over `max_bytes` or anything but a frame.
    """
    view = _as_bytes(data)
    schema_end, body_start = _check_header(view, max_bytes)
    raw = bytes(view[HEADER_BYTES:schema_end])
    # A stream's batches are nearly all alike, and a small schema costs more to check than its tensors do.
    structure, slots = (_read if len(raw) <= MAX_KEPT_SCHEMA_BYTES else _read.__wrapped__)(raw)
    _check_body(view, schema_end, body_start, slots)
    body = _aligned(view, body_start)
    return rebuild(
        structure,
        [memory.tensor_over(body, slot.start, slot.dtype, slot.shape, slot.strides) for slot in slots],
    )


@lru_cache(maxsize=256)
def _entry(dtype: torch.dtype, shape: torch.Size, strides: tuple[int, ...]) -> Entry:
    name = dtypes.NAMES[dtype]
    if problem := shape_problem(shape):
        raise UsageError(f"a tensor cannot travel: {problem}")
    # A dimension of size 1 may have any stride; bounded, it still tells channels_last from contiguous.
    bounded = tuple(min(stride, shape.numel()) for stride in strides)
    if shape.numel() == 0 or bounded == memory.contiguous_strides(shape):
        return Entry(name, shape)
    return Entry(name, shape, bounded)


def _as_bytes(data: Data) -> memoryview:
    if isinstance(data, Tensor):
        if data.dtype != torch.uint8 or data.dim() != 1 or not data.is_contiguous():
            raise UsageError(
                f"a frame is bytes or a contiguous 1-d uint8 tensor, not {data.dtype} {data.shape}"
            )
        return memory.bytes_of(data.detach())
    view = memoryview(data)
    return view.cast("B") if view.nbytes and (view.format, view.ndim) != ("B", 1) else view


def _check_header(view: memoryview, max_bytes: int) -> tuple[int, int]:
    """Where the schema ends and where the body starts, once the crc32 has been found right."""
    if len(view) > max_bytes:
        raise ProtocolError(f"a frame has {len(view)} bytes; at most {max_bytes} are allowed")
    if len(view) < HEADER_BYTES:
        raise ProtocolError(
            f"a frame was cut short: {len(view)} bytes, and its header alone has {HEADER_BYTES}"
        )
    magic, version, flags, schema_bytes, crc, body_bytes = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise ProtocolError(f"a frame begins with {MAGIC!r}, and this with {magic!r}")
    if version != VERSION or flags not in (0, BODY_UNCHECKED):
        raise ProtocolError(
            f"a frame of version {version} (flags {flags}); this side reads version {VERSION}, flags 0 or 1"
        )
    if schema_bytes > MAX_SCHEMA_BYTES:
        raise ProtocolError(
            f"a frame's schema has {schema_bytes} bytes; at most {MAX_SCHEMA_BYTES} are allowed"
        )
    schema_end = HEADER_BYTES + schema_bytes
    body_start = padded(schema_end)
    if body_start + body_bytes != len(view):
        raise ProtocolError(
            f"a frame announces {body_start + body_bytes} bytes (schema {schema_bytes}, body {body_bytes}) "
            f"and has {len(view)}"
        )
    covered = view[HEADER_BYTES:body_start] if flags else view[HEADER_BYTES:]
    if (actual := zlib.crc32(covered)) != crc:
        raise ProtocolError(f"a frame's crc32 is {actual:#010x} where its header says {crc:#010x}")
    return schema_end, body_start


class _Slot(NamedTuple):
    """Where a tensor lies in the body: bytes [start, stop)."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    start: int
    stop: int


@lru_cache(maxsize=64)
def _read(raw: bytes) -> tuple[Structure, tuple[_Slot, ...]]:
    """A schema, checked for itself: the tree, and where its tensors must lie."""
    try:
        schema = _SCHEMA_DECODER.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"a frame's schema does not parse: {error}") from error
    slots: list[_Slot] = []
    end = 0
    for at, entry in enumerate(schema.entries):
        if problem := _entry_problem(entry):
            raise ProtocolError(f"tensor {at} of a frame: {problem}")
        start = padded(end)
        end = start + entry.num_bytes
        slots.append(_Slot(dtypes.DTYPES[entry.dtype], entry.shape, entry.strides, start, end))
    check(schema.structure, [(slot.dtype, len(slot.shape)) for slot in slots])
    return schema.structure, tuple(slots)


def _check_body(view: memoryview, schema_end: int, body_start: int, slots: Sequence[_Slot]) -> None:
    """ProtocolError unless the tensors fill the body exactly, with zeros between them."""
    body_bytes = slots[-1].stop if slots else 0
    if body_start + body_bytes != len(view):
        raise ProtocolError(
            f"a frame's {len(slots)} tensors need a body of {body_bytes} bytes, and it has "
            f"{len(view) - body_start}"
        )
    if any(view[schema_end:body_start]):
        raise ProtocolError(f"a frame's padding between bytes {schema_end} and {body_start} is not zero")
    end = 0
    for slot in slots:
        if any(view[body_start + end : body_start + slot.start]):
            raise ProtocolError(
                f"a frame's padding between bytes {end} and {slot.start} of its body is not zero"
            )
        end = slot.stop


def _entry_problem(entry: Entry) -> str | None:
    if entry.dtype not in dtypes.DTYPES:
        return f"{entry.dtype!r} is no known dtype"
    if problem := shape_problem(entry.shape):
        return problem
    if entry.strides is None:
        return None
    elements = num_elements(entry.shape)
    if len(entry.strides) != len(entry.shape) or elements == 0:
        return f"strides {entry.strides} do not go with shape {entry.shape}"
    if max(entry.strides, default=0) > elements or not memory.is_dense(entry.shape, entry.strides):
        return f"strides {entry.strides} of shape {entry.shape} leave holes or overlap"
    return None


def _aligned(view: memoryview, body_start: int) -> memory.Bytes:
    """The body as writable aligned memory: the one it has, or one copy."""
    body = np.frombuffer(view, np.uint8)[body_start:]
    if body.flags.writeable and memory.is_aligned(body):
        return body
    copy: memory.Bytes = memory.allocate(len(body)).numpy()
    copy[:] = body
    return copy
