"""One message with at most one nested batch of tensors, as envelopes on a stream and back.

::

    envelope 1: control = [body bytes, message]   payload = first MiB of the frame
    envelope 2: control = (empty)                 payload = the next ...

A stream carries one parcel after the other, never two at once, so what is said keeps its order and no more
than one body is open. Each payload is copied once on either side: from the tensors into an envelope, and out of
it into the memory that the batch is then read from. Bytes in, messages out: no stream, no meaning of a message.
Who sends holds a lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Generic, TypeVar

import msgspec
from torch import Tensor

from manyhands.errors import ProtocolError
from manyhands.tensors import frame, memory
from manyhands.wire.envelope import pack as pack_envelope
from manyhands.wire.envelope import unpack as unpack_envelope
from manyhands.wire.transfer import CHUNK_BYTES

_TRANSFER: Final = 1
_T = TypeVar("_T")

Take = Callable[[Any, int], Tensor]
"""(message, body bytes) to the memory for it: uint8 ``(body bytes,)``, aligned to 64. May raise ProtocolError."""


class _Control(msgspec.Struct, Generic[_T], frozen=True, array_like=True, forbid_unknown_fields=True):
    num_bytes: int
    message: _T


_encoder = msgspec.msgpack.Encoder()


def pack(message: msgspec.Struct, tree: Any = None) -> Iterator[bytes]:
    """The envelopes of a message and its tensors (any nested batch, or its `Frame`; None: no body), in order.

    UsageError where something in `tree` cannot travel, or it is over 1 GiB.
    """
    if tree is None:
        yield pack_envelope(_encoder.encode(_Control(0, message)))
        return
    body = tree if isinstance(tree, frame.Frame) else frame.encode(tree, checks_body=False)
    control = _encoder.encode(_Control(body.num_bytes, message))
    offset = 0
    for payload in _cut(body.parts()):
        yield pack_envelope(b"" if offset else control, transfer=_TRANSFER, offset=offset, payload=payload)
        offset += len(payload)


def _cut(parts: list[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Payloads of a whole chunk each, the last apart; only those that span several parts are joined."""
    pieces: list[bytes | memoryview] = []
    size = 0
    for part in parts:
        at, view = 0, memoryview(part)
        while at < len(view):
            piece = view[at : at + CHUNK_BYTES - size]
            pieces.append(piece)
            at, size = at + len(piece), size + len(piece)
            if size == CHUNK_BYTES:
                yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
                pieces, size = [], 0
    if pieces:
        yield b"".join(pieces)


class Parcels(Generic[_T]):
    """What one stream carries, put together again. `messages` is the union of what its sender may say."""

    def __init__(
        self, messages: Any, *, max_body_bytes: int = frame.MAX_FRAME_BYTES, take: Take | None = None
    ) -> None:
        self._decoder: msgspec.msgpack.Decoder[_Control[_T]] = msgspec.msgpack.Decoder(_Control[messages])
        self._max_body_bytes = max_body_bytes
        self._take = take or _new_memory
        self._waiting: _T | None = None
        self._body: Tensor | None = None
        self._bytes = memoryview(b"")
        self._received = 0

    def feed(self, data: bytes) -> tuple[_T, Any] | None:
        """Take the next envelope; the parcel that it makes whole, else None.

        ProtocolError for bytes that mean nothing, a body beyond the limit, or a second parcel before the first
        is whole.
        """
        envelope = unpack_envelope(data)
        if envelope.control:
            if self._waiting is not None:
                raise ProtocolError("a message came before the body of the one before was whole")
            control = self._read(envelope.control)
            if not control.num_bytes:
                if envelope.transfer:
                    raise ProtocolError("a message announced no body and brought one")
                return control.message, None
            self._open(control)
        if not envelope.transfer:
            raise ProtocolError("a message announced a body and brought none of it")
        return self._collect(envelope.transfer, envelope.offset, envelope.payload)

    def _open(self, control: _Control[_T]) -> None:
        if not 0 < control.num_bytes <= self._max_body_bytes:
            raise ProtocolError(
                f"a message announces a body of {control.num_bytes} bytes; at most {self._max_body_bytes} are allowed"
            )
        self._body = self._take(control.message, control.num_bytes)
        self._bytes = memory.bytes_of(self._body)
        self._received, self._waiting = 0, control.message

    def _collect(self, transfer: int, offset: int, payload: memoryview) -> tuple[_T, Any] | None:
        end = offset + len(payload)
        if self._waiting is None or self._body is None or transfer != _TRANSFER:
            raise ProtocolError(f"a chunk came for transfer {transfer}, which is not open")
        if offset != self._received or end > len(self._bytes):
            raise ProtocolError(
                f"a body of {len(self._bytes)} bytes has {self._received}, and its next chunk is [{offset}, {end})"
            )
        self._bytes[offset:end] = payload
        self._received = end
        if end < len(self._bytes):
            return None
        message, body = self._waiting, self._body
        # Nothing of a body that is whole is kept here: its memory is its reader's.
        self._waiting, self._body, self._bytes = None, None, memoryview(b"")
        return message, frame.decode(body, max_bytes=self._max_body_bytes)

    def _read(self, control: memoryview) -> _Control[_T]:
        try:
            return self._decoder.decode(control)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise ProtocolError(
                f"a message of {len(control)} bytes is not one of ours ({error}): is the other side another version?"
            ) from None


def _new_memory(message: Any, num_bytes: int) -> Tensor:
    return memory.allocate(num_bytes)
