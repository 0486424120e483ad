"""Transfers: bodies cut and put together, under caps that the peer does not set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyhands.errors import ProtocolError, UsageError
from manyhands.tensors import decode, encode
from manyhands.wire.envelope import pack, unpack
from manyhands.wire.transfer import CHUNK_BYTES, MIN_CHUNK_BYTES, Incoming, chunks

torch.set_num_threads(1)
K = MIN_CHUNK_BYTES


def incoming(max_open=4, max_open_bytes=1 << 24):
    return Incoming(max_open=max_open, max_open_bytes=max_open_bytes)


def block(size, value=1):
    return memoryview(bytes([value]) * size)


@given(st.integers(0, 5 * K), st.integers(K, 3 * K))
def test_chunks_are_views_that_cover_a_body_once(size, chunk_bytes):
    body = memoryview(bytes(at % 251 for at in range(size)))
    cut = list(chunks(body, chunk_bytes))
    assert b"".join(part for _, part in cut) == body
    assert [offset for offset, _ in cut] == list(range(0, size, chunk_bytes))
    assert all(part.obj is body.obj and 0 < len(part) <= chunk_bytes for _, part in cut)


def test_chunks_take_any_contiguous_view_and_sensible_sizes():
    floats = memoryview(bytes(8 * K)).cast("d")
    assert sum(len(part) for _, part in chunks(floats)) == 8 * K
    assert len(list(chunks(block(CHUNK_BYTES + 1)))) == 2
    for chunk_bytes in (0, -1, K - 1, (4 << 20) + 1):
        with pytest.raises(UsageError, match=f"chunks of {chunk_bytes} bytes"):
            chunks(block(10), chunk_bytes)


class Shelf:
    """A place of so many bytes."""

    def __init__(self, size):
        self.bytes = memoryview(bytearray(size))


def test_a_body_with_a_place_is_there_as_it_comes_and_keeps_no_chunk():
    shelf = Shelf(2 * K + 5)
    one = incoming()
    assert one.announce(1, 2 * K + 5, shelf) is None
    chunk = bytearray(block(2 * K, 7))
    assert one.feed(1, 0, memoryview(chunk)) is None
    assert shelf.bytes[: 2 * K] == chunk
    chunk.clear()  # BufferError if anyone held on to it
    body = one.feed(1, 2 * K, block(5, 9))
    assert body is not None
    assert body.place is shelf
    assert body.to_tensor().tolist() == [7] * 2 * K + [9] * 5


def test_a_chunk_beyond_its_place_is_refused_and_not_written():
    shelf = Shelf(K)
    one = incoming()
    one.announce(1, K, shelf)
    with pytest.raises(ProtocolError, match=f"announced {K} bytes, and a chunk ends at {2 * K}"):
        one.feed(1, 0, block(2 * K))
    assert not any(shelf.bytes)


def test_a_batch_travels_through_frames_chunks_and_envelopes():
    batch = {"x": torch.randn(300, 700), "y": torch.arange(300)}
    data = encode(batch).to_bytes()
    open_transfers = incoming()
    assert open_transfers.announce(9, len(data)) is None
    body = None
    for offset, part in chunks(memoryview(data), 100_000):
        assert body is None
        envelope = unpack(pack(transfer=9, offset=offset, payload=part))
        body = open_transfers.feed(envelope.transfer, envelope.offset, envelope.payload)
    assert body is not None
    memory = body.to_tensor()
    back = decode(memory)
    assert torch.equal(back["x"], batch["x"])
    assert torch.equal(back["y"], batch["y"])
    start = memory.data_ptr()
    assert start <= back["x"].data_ptr() < start + len(data), "the second copy is not needed"
    assert (len(open_transfers), open_transfers.open_bytes) == (0, 0)


def test_transfers_may_be_mixed_on_one_stream():
    both = incoming()
    both.announce(1, 2 * K)
    both.announce(2, K + 1)
    assert both.feed(1, 0, block(K, 1)) is None
    assert both.feed(2, 0, block(K, 2)) is None
    second = both.feed(2, K, block(1, 3))
    first = both.feed(1, K, block(K, 4))
    assert (first.transfer, first.num_bytes, second.transfer, second.num_bytes) == (1, 2 * K, 2, K + 1)
    assert bytes(second.to_tensor().numpy()) == b"\2" * K + b"\3"
    assert [offset for offset, _ in first.chunks] == [0, K]


def test_chunks_are_kept_without_a_copy_unless_they_would_hold_a_large_message():
    """A peer could pin a megabyte of control bytes with each small chunk."""
    one = incoming()
    one.announce(1, 2 * K)
    message = pack(b"small", transfer=1, payload=bytes(K))
    one.feed(1, 0, unpack(message).payload)
    heavy = pack(bytes(1 << 20), transfer=1, offset=K, payload=bytes(K))
    body = one.feed(1, K, unpack(heavy).payload)
    assert body.chunks[0][1].obj is message
    assert len(body.chunks[1][1].obj) == K


def test_a_transfer_of_nothing_is_whole_at_once():
    none_open = incoming(max_open=0, max_open_bytes=0)
    body = none_open.announce(5, 0)
    assert (body.num_bytes, body.chunks, body.to_tensor().shape) == (0, (), (0,))
    assert len(none_open) == 0


def test_a_body_goes_only_where_it_fits():
    one = incoming()
    one.announce(1, 4)
    body = one.feed(1, 0, memoryview(b"abcd"))
    target = torch.zeros(4, dtype=torch.uint8)
    body.copy_into(target)
    assert bytes(target.numpy()) == b"abcd"
    assert body.to_tensor().data_ptr() % 64 == 0
    for wrong in (torch.zeros(5, dtype=torch.uint8), torch.zeros(4), torch.zeros(8, dtype=torch.uint8)[::2]):
        with pytest.raises(UsageError, match="body of 4 bytes"):
            body.copy_into(wrong)


@pytest.mark.parametrize(
    ("transfer", "num_bytes", "says"),
    [
        (0, 10, "id is none"),
        (-1, 10, "announced"),
        (1, 10, "in use"),
        (1, 0, "in use"),
        (3, -1, "-1 bytes"),
        (3, 101, "announces 101 bytes beside 100 open ones; at most 200"),
        (3, 2**64, "at most 200"),
    ],
)
def test_an_announcement_over_the_caps_is_refused(transfer, num_bytes, says):
    one = incoming(max_open=2, max_open_bytes=200)
    one.announce(1, 100)
    with pytest.raises(ProtocolError, match=says):
        one.announce(transfer, num_bytes)
    assert (len(one), one.open_bytes) == (1, 100)
    assert one.announce(2, 100) is None
    one.drop(2)
    one.announce(2, 1)
    with pytest.raises(ProtocolError, match="beside 2 open ones"):
        one.announce(3, 1)


@pytest.mark.parametrize(
    ("transfer", "offset", "size", "says"),
    [
        (2, 0, K, "transfer 2, which is not open"),
        (1, 0, K, "has 4096 bytes, and its next chunk is at 0"),
        (1, K + 1, K, "next chunk is at 4097"),
        (1, K, 2 * K + 1, "announced 12288 bytes, and a chunk ends at 12289"),
        (1, K, K - 1, "chunk of 4095 bytes; 4096"),
        (1, K, 0, "chunk of 0 bytes"),
    ],
)
def test_a_chunk_out_of_order_too_long_or_too_small_is_refused(transfer, offset, size, says):
    one = incoming()
    one.announce(1, 3 * K)
    one.feed(1, 0, block(K))
    with pytest.raises(ProtocolError, match=says):
        one.feed(transfer, offset, block(size))
    body = one.feed(1, K, block(2 * K))
    assert body.num_bytes == 3 * K, "what was refused left no trace"


def test_a_dropped_transfer_gives_its_room_back():
    one = incoming(max_open=1, max_open_bytes=K)
    one.announce(1, K)
    assert one.drop(1) is True
    assert one.drop(1) is False
    with pytest.raises(ProtocolError, match="not open"):
        one.feed(1, 0, block(K))
    one.announce(1, K)
    assert one.feed(1, 0, block(K)).num_bytes == K
