"""Frames of senders that err or lie: each is refused with its numbers, before anything is allocated."""

from __future__ import annotations

import struct
import zlib

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands.errors import ProtocolError
from manyhands.tensors import decode, encode
from manyhands.tensors import frame as frame_module

torch.set_num_threads(1)
WHOLE = encode({"x": torch.arange(5.0), "y": [torch.ones(3, 2).t(), "a", None, 2]}).to_bytes()
T = ["t", "tensor"]


def forged(nodes, entries, body=b"", *, version=1, reserved=0, schema=None, pad=b"\0", body_bytes=None):
    """A frame whose crc32 is right and whose contents are whatever the test says."""
    schema = msgspec.msgpack.encode([[nodes], entries]) if schema is None else schema
    rest = schema + pad * (-(24 + len(schema)) % 64) + body
    size = len(body) if body_bytes is None else body_bytes
    return struct.pack("<4sHHIIQ", b"MHfr", version, reserved, len(schema), zlib.crc32(rest), size) + rest


def test_the_forger_forges_well():
    back = decode(forged([T], [["float32", [2], None]], struct.pack("<2f", 1, 2)))
    assert back.tolist() == [1, 2]


def test_a_frame_cut_at_any_byte_is_refused():
    for end in range(len(WHOLE)):
        with pytest.raises(ProtocolError):
            decode(WHOLE[:end])
    with pytest.raises(ProtocolError, match=f"announces {len(WHOLE)} bytes .* and has {len(WHOLE) + 1}"):
        decode(WHOLE + b"\0")


def test_a_flipped_bit_anywhere_is_refused():
    for at in range(len(WHOLE)):
        for bit in range(8):
            bad = bytearray(WHOLE)
            bad[at] ^= 1 << bit
            with pytest.raises(ProtocolError):
                decode(bad)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused(data):
    for frame in (data, WHOLE[:24] + data, forged(None, None, schema=data)):
        with pytest.raises(ProtocolError):
            decode(frame)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_a_changed_schema_under_a_right_crc_is_refused_or_is_some_tree(data):
    """Whatever the schema says, reading ends in a tree that can be sent again, or in ProtocolError."""
    size = struct.unpack_from("<I", WHOLE, 8)[0]
    schema = bytearray(WHOLE[24 : 24 + size])
    for _ in range(data.draw(st.integers(1, 4))):
        schema[data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    body = WHOLE[-(-(24 + size) // 64) * 64 :]
    try:
        encode(decode(forged(None, None, body, schema=bytes(schema))))
    except ProtocolError:
        return


F = "float32"


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"XXfr" + WHOLE[4:], "begins with b'MHfr'"),
        (forged([1], [], version=2), "version 2"),
        (forged([1], [], reserved=2), "flags 2"),
        (forged([1], [], body_bytes=2**63), "and has 64"),
        (forged([1], [], b"\0"), "0 tensors need a body of 0 bytes, and it has 1"),
        (forged([T], [[F, [2], None]], bytes(7)), "need a body of 8 bytes, and it has 7"),
        (forged([T], [[F, [2], None]], bytes(9)), "need a body of 8 bytes, and it has 9"),
        (forged([T], [[F, [2**40], None]], bytes(8)), "need a body of 4398046511104 bytes"),
        (forged([T], [[F, [2**40, 2**40], None]]), "more than"),
        (forged([T], [[F, [2**40, 2**40, 0], None]]), "more than"),
        (forged([T], [[F, [-1], None]]), "does not parse"),
        (forged([T], [[F, [2**63], None]]), "does not parse"),
        (forged([T], [[F, [1] * 65, None]], bytes(4)), "does not parse"),
        (forged([T], [["qint8", [1], None]], bytes(1)), "'qint8' is no known dtype"),
        (forged([T], [["load", [1], None]], bytes(1)), "'load' is no known dtype"),
        (forged([T], [[F, [2, 2], [0, 1]]], bytes(16)), "holes or overlap"),
        (forged([T], [[F, [2, 2], [1, 1]]], bytes(16)), "holes or overlap"),
        (forged([T], [[F, [2, 2], [3, 1]]], bytes(16)), "holes or overlap"),
        (forged([T], [[F, [2, 2], [2, 2]]], bytes(16)), "holes or overlap"),
        (forged([T], [[F, [1, 2], [2**40, 1]]], bytes(8)), "holes or overlap"),
        (forged([T], [[F, [2], [-1]]], bytes(8)), "does not parse"),
        (forged([T], [[F, [2, 2], [1]]], bytes(16)), "do not go with shape"),
        (forged([T], [[F, [0], [1]]]), "do not go with shape"),
        (
            forged([["s", "list", 2], T, T], [["bool", [1], None]] * 2, b"\1" * 65),
            "padding between bytes 1 and 64 of its body",
        ),
        (forged([1], [], pad=b"\1"), "padding between bytes"),
        (forged([T], []), "room for 1 tensors, and 0"),
        (forged([1], [[F, [0], None]]), "room for 0 tensors, and 1"),
        (forged([["t", "array"]], [["bfloat16", [0], None]]), "numpy does not have"),
        (forged([["t", "pickle"]], [[F, [0], None]]), "does not parse"),
        (forged([["z"]], []), "does not parse"),
        (forged([["r", ["__class__"]], 1], []), "public identifier"),
        (forged([["s", "list", 2**31], 1], []), "does not parse"),
        (forged([], []), "does not parse"),
        (forged([["s", "list", 1]] * 33 + [1], []), "deeper than 32"),
        (forged(None, None, schema=b"\x91" * 5000 + b"\x01"), "does not parse"),
        (forged(None, None, schema=b"\xdd\xff\xff\xff\xff"), "does not parse"),
        (forged(None, None, schema=b"\x92\x91\xdd\xff\xff\xff\xff"), "does not parse"),
        (forged(None, None, schema=msgspec.msgpack.encode([[[1]], []]) + b"\0"), "does not parse"),
        (forged(None, None, schema=b"\x92\x91\x91\xa2\xff\xfe\x90"), "does not parse"),
        (forged(None, None, schema=b""), "does not parse"),
    ],
)
def test_each_lie_is_refused_before_any_allocation(frame, says, monkeypatch):
    def never(*_):
        raise AssertionError("memory was asked for on behalf of a lie")

    monkeypatch.setattr(frame_module, "_aligned", never)
    monkeypatch.setattr(frame_module, "rebuild", never)
    with pytest.raises(ProtocolError, match=says):
        decode(frame)


def test_a_frame_over_the_callers_limit_is_refused():
    with pytest.raises(ProtocolError, match=f"has {len(WHOLE)} bytes; at most {len(WHOLE) - 1}"):
        decode(WHOLE, max_bytes=len(WHOLE) - 1)
    assert decode(WHOLE, max_bytes=len(WHOLE))["y"][3] == 2


def test_a_tensor_changed_between_encoding_and_sending_is_noticed():
    tensor = torch.zeros(4)
    frame = encode(tensor)
    tensor[0] = 1
    with pytest.raises(ProtocolError, match="crc32"):
        decode(frame.to_bytes())
