"""Envelopes: exact bytes both ways, and nothing but them accepted."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyhands.errors import ProtocolError, UsageError
from manyhands.wire.envelope import (
    HEADER_BYTES,
    MAX_CONTROL_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_PAYLOAD_BYTES,
    pack,
    unpack,
)

MESSAGE = pack(b"control", transfer=7, offset=1 << 33, payload=b"payload!")


def forged(control, payload, transfer, offset, *, magic=0x484D, version=1, flags=0, control_bytes=None):
    size = len(control) if control_bytes is None else control_bytes
    start = size ^ transfer ^ (offset & 0xFFFFFFFF) ^ (offset >> 32) ^ (len(payload) << 9 & 0xFFFFFFFF)
    crc = zlib.crc32(control, start)
    return struct.pack("<HBBIIIQ", magic, version, flags, size, transfer, crc, offset) + control + payload


@given(
    st.binary(max_size=50),
    st.integers(1, 2**32 - 1),
    st.integers(0, 2**63),
    st.binary(min_size=1, max_size=50),
)
def test_what_was_packed_is_unpacked(control, transfer, offset, payload):
    data = pack(control, transfer=transfer, offset=offset, payload=memoryview(payload))
    assert data == forged(control, payload, transfer, offset)
    envelope = unpack(data)
    assert (bytes(envelope.control), envelope.transfer) == (control, transfer)
    assert (envelope.offset, bytes(envelope.payload)) == (offset, payload)
    alone = unpack(pack(control))
    assert (bytes(alone.control), alone.transfer, alone.offset, len(alone.payload)) == (control, 0, 0, 0)


def test_the_bytes_of_a_message_are_fixed():
    golden = bytes.fromhex("4d48 01 00 07000000 07000000 f93f9279 0000000002000000") + b"controlpayload!"
    assert golden == MESSAGE
    assert HEADER_BYTES == 24


def test_both_parts_are_views_of_the_message():
    envelope = unpack(MESSAGE)
    assert envelope.control.obj is MESSAGE
    assert envelope.payload.obj is MESSAGE
    assert envelope.payload.readonly


def test_a_message_cut_at_any_byte_or_continued_is_refused():
    for end in range(len(MESSAGE)):
        with pytest.raises(ProtocolError):
            unpack(MESSAGE[:end])
    with pytest.raises(ProtocolError):
        unpack(MESSAGE + b"\0")


def test_a_flipped_bit_in_what_steers_the_parser_is_refused():
    for message in (MESSAGE, pack(b"control"), pack()):
        for at in range(HEADER_BYTES + len(unpack(message).control)):
            for bit in range(8):
                bad = bytearray(message)
                bad[at] ^= 1 << bit
                with pytest.raises(ProtocolError):
                    unpack(bytes(bad))


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "has 0 bytes; 24 to"),
        (bytes(MAX_MESSAGE_BYTES + 1), "has 5242905 bytes"),
        (forged(b"", b"", 0, 0, magic=1), "magic 0x0001"),
        (forged(b"", b"", 0, 0, version=2), "version 2"),
        (forged(b"", b"", 0, 0, flags=1), "flags 1"),
        (forged(b"ab", b"", 0, 0, control_bytes=3), "of 26 bytes announces 3 control bytes"),
        (forged(bytes(MAX_CONTROL_BYTES + 1), b"", 0, 0), "announces 1048577 control bytes"),
        (forged(b"", bytes(MAX_PAYLOAD_BYTES + 1), 1, 0), "payload of 4194304 are allowed"),
        (forged(b"", b"x", 0, 0), "without a transfer has 1 payload bytes"),
        (forged(b"a", b"", 0, 5), "at offset 5"),
        (forged(b"a", b"", 3, 0), "transfer 3 has no payload"),
        (forged(b"a", b"xy", 3, 2**64 - 1), "does not fit"),
    ],
)
def test_a_message_out_of_bounds_is_refused(message, says):
    with pytest.raises(ProtocolError, match=says):
        unpack(message)


@pytest.mark.parametrize(
    ("control", "given_", "says"),
    [
        (bytes(MAX_CONTROL_BYTES + 1), {}, "1048577 control"),
        (b"", {"transfer": 1, "payload": bytes(MAX_PAYLOAD_BYTES + 1)}, "4194305 payload"),
        (b"", {"payload": b"x"}, "without a transfer"),
        (b"", {"offset": 1}, "without a transfer"),
        (b"", {"transfer": 1}, "no payload"),
        (b"", {"transfer": -1, "payload": b"x"}, "does not fit"),
        (b"", {"transfer": 2**32, "payload": b"x"}, "does not fit"),
        (b"", {"transfer": 1, "offset": -1, "payload": b"x"}, "does not fit"),
        (b"", {"transfer": 1, "offset": 2**64 - 1, "payload": b"x"}, "does not fit"),
    ],
)
def test_a_message_that_would_be_refused_is_not_made(control, given_, says):
    with pytest.raises(UsageError, match=says):
        pack(control, **given_)


def test_the_largest_message_fits():
    data = pack(bytes(MAX_CONTROL_BYTES), transfer=1, payload=bytes(MAX_PAYLOAD_BYTES))
    assert len(data) == MAX_MESSAGE_BYTES
    assert len(unpack(data).payload) == MAX_PAYLOAD_BYTES
