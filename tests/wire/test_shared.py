"""Large messages of neighbours: through shared memory, in order, and never where that cannot be trusted."""

from __future__ import annotations

import fcntl
import gc
import os
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands.errors import ProtocolError
from manyhands.wire import Limits, Link, Peer, dial
from manyhands.wire.address import is_own, outward_address, peer_host
from manyhands.wire.shared import LEAST_BYTES, RING_BYTES, Offer, Shared, accept

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory of this kind is Linux's")
MOST = 6 << 20


@pytest.fixture
def coordinator(make_coordinator: Any) -> Any:
    return make_coordinator()


def pair() -> tuple[Shared, Shared]:
    offer = Offer.make()
    assert offer is not None
    theirs = accept(offer.where)
    assert theirs is not None
    offer.close()
    return offer.shared, theirs


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, MOST), st.booleans()),
        max_size=40,
    )
)
def test_whatever_is_sent_comes_whole_and_in_order(turns: list[tuple[bool, int, bool]]) -> None:
    dialled, listening = pair()
    waiting: tuple[list[Any], list[Any]] = ([], [])
    for number, (is_dialled, size, is_read) in enumerate(turns):
        message = bytes([number % 251]) * size
        sender, way = (dialled, 0) if is_dialled else (listening, 1)
        waiting[way].append((message, sender.wrap(message)))
        if is_read:
            sent, on_stream = waiting[way].pop(0)
            reader = listening if is_dialled else dialled
            assert reader.unwrap(on_stream, MOST) == sent
    for way, reader in ((0, listening), (1, dialled)):
        for sent, on_stream in waiting[way]:
            assert reader.unwrap(on_stream, MOST) == sent


def test_small_messages_and_those_without_room_travel_themselves() -> None:
    dialled, listening = pair()
    small = bytes(LEAST_BYTES - 1)
    assert dialled.wrap(small) is small
    large = bytes(MOST)
    notes = [dialled.wrap(large) for _ in range(RING_BYTES // MOST)]
    assert all(len(note) < 100 for note in notes)
    assert dialled.wrap(large) is large  # full: nobody waits for room
    assert listening.unwrap(notes[0], MOST) == large
    assert dialled.wrap(large) is not large


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 0), (0, LEAST_BYTES - 1), (0, MOST + 1), (RING_BYTES - 1, LEAST_BYTES), (1 << 31, MOST)],
)
def test_a_note_that_lies_is_refused(offset: int, size: int) -> None:
    dialled, listening = pair()
    note = dialled.greeting[:16] + struct.pack("<II", offset, size)
    with pytest.raises(ProtocolError, match=f"{size} bytes lie at {offset}"):
        listening.unwrap(note, MOST)


def test_a_neighbour_that_counts_wrong_is_refused() -> None:
    dialled, listening = pair()
    large = bytes(LEAST_BYTES)
    listening.unwrap(dialled.wrap(large), MOST)
    listening._read_by_us[0] = 5
    with pytest.raises(ProtocolError, match="given back"):
        dialled.wrap(large)
    listening._read_by_us[0] = 1
    dialled, listening = pair()
    listening.unwrap(dialled.wrap(large), MOST)
    dialled.wrap(large)
    listening._read_by_us[0] = 0
    with pytest.raises(ProtocolError, match="fell from 1 to 0"):
        dialled.wrap(large)


def test_only_memory_of_our_own_is_mapped(tmp_path: Path) -> None:
    offer = Offer.make()
    assert offer is not None
    pid, descriptor, secret = offer.where.split(":")
    for where in (
        "",
        "1:2",
        f"{pid}:{descriptor}:{'0' * 32}",  # another secret
        f"{pid}:999999:{secret}",
        f"999999999:{descriptor}:{secret}",
        f"../../{pid}:{descriptor}:{secret}",
        f"{pid}:0:{secret}",  # standard input
    ):
        assert accept(where) is None
    path = tmp_path / "manyhands"
    path.write_bytes(bytes.fromhex(secret))
    with path.open("rb+") as file:
        assert accept(f"{pid}:{file.fileno()}:{secret}") is None
    read, write = os.pipe()  # opening one may wait for ever
    assert accept(f"{pid}:{read}:{secret}") is None
    os.close(read)
    os.close(write)
    unsealed = os.memfd_create("manyhands", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, os.fstat(int(descriptor)).st_size)
    os.pwrite(unsealed, bytes.fromhex(secret), 0)
    assert accept(f"{pid}:{unsealed}:{secret}") is None  # its size could change under who has mapped it
    os.close(unsealed)
    assert accept(offer.where) is not None
    offer.close()
    offer.close()
    assert accept(offer.where) is None


def test_its_size_cannot_change() -> None:
    offer = Offer.make()
    assert offer is not None
    descriptor = int(offer.where.split(":")[1])
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    offer.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_another_user_of_the_machine_cannot_have_it() -> None:
    offer = Offer.make()
    assert offer is not None
    code = f"from manyhands.wire.shared import accept; print(accept({offer.where!r}))"
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
    )
    offer.close()
    if done.returncode:
        pytest.skip(f"nobody cannot run this Python: {done.stderr[-200:]}")
    assert done.stdout == "None\n"


@pytest.mark.parametrize("shares", [True, False])
def test_what_a_stream_carries_is_the_same_with_and_without(coordinator: Any, shares: bool) -> None:
    messages = [os.urandom(size) for size in (10, LEAST_BYTES, 1 << 20, 100, MOST)] * 5
    with dial(coordinator.invite(), limits=Limits(shares_memory=shares)) as connection:
        stream = connection.stream()
        stream.send(b"first")
        assert stream.receive() == b"first"
        assert (stream._shared is not None) == shares

        def send() -> None:
            for message in messages:
                stream.send(message)
            stream.finish()

        sending = threading.Thread(target=send, daemon=True)
        sending.start()
        assert list(stream) == messages
        sending.join(10)
        assert stream.sent_bytes == stream.received_bytes == sum(map(len, messages)) + 5


def mapped() -> int:
    """How many of such memories this process holds."""
    gc.collect()
    return len(re.findall("memfd:manyhands", Path("/proc/self/maps").read_text()))


def test_no_large_message_is_seen_on_the_connection(coordinator: Any, make_tap: Any) -> None:
    tap = make_tap(coordinator.port)
    invite = coordinator.invite().with_address("127.0.0.1", tap.port)
    with dial(invite) as connection:
        stream = connection.stream()
        stream.send(b"first")
        assert stream.receive() == b"first"
        for _ in range(8):
            stream.send(bytes(1 << 20))
            assert len(stream.receive() or b"") == 1 << 20
    assert sum(map(len, tap.seen)) < 1 << 20


def test_a_listener_may_be_told_not_to(make_coordinator: Any) -> None:
    coordinator = make_coordinator(limits=Limits(shares_memory=False))  # whoever offers hears it at once
    before = mapped()
    with dial(coordinator.invite()) as connection:
        stream = connection.stream()
        stream.send(bytes(1 << 20))
        assert len(stream.receive() or b"") == 1 << 20
        assert stream._shared is None
        assert mapped() == before


def test_a_stream_that_ends_gives_its_memory_back(coordinator: Any) -> None:
    before = mapped()

    async def one(peer: Peer, link: Link) -> None:
        await link.write(await link.read() or b"")

    coordinator.serve = one
    for _ in range(5):
        with dial(coordinator.invite()) as connection:
            stream = connection.stream()
            stream.send(bytes(1 << 20))
            assert len(stream.receive() or b"") == 1 << 20
            assert stream.receive() is None
        coordinator.over.wait(5)
        del stream, connection
    assert mapped() == before


def test_whose_address_it_is() -> None:
    assert peer_host("ipv4:127.0.0.1:40000") == "127.0.0.1"
    assert peer_host("ipv6:%5B::1%5D:40000") == "::1"
    assert peer_host("unix:") == ""
    assert all(is_own(host) for host in ("localhost", "127.0.0.1", "::1", "127.8.9.1", "::ffff:127.0.0.1"))
    assert is_own(outward_address())
    assert not any(is_own(host) for host in ("", "192.0.2.7", "example.invalid", "2001:db8::1"))
