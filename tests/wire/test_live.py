"""A stream while it lives, and each way in which it ends."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from manyhands.clock import ManualClock
from manyhands.errors import Mismatch, ProtocolError, Refused, RunFailed, Unreachable, UsageError
from manyhands.testing.process import wait_for
from manyhands.wire import Gate, Limits, Link, NodeKey, Peer, dial


def open_stream(coordinator: Any, key: NodeKey | None = None, **options: Any) -> tuple[Any, Any]:
    connection = dial(coordinator.invite(), key=key, **options)
    stream = connection.stream()
    stream.send(b"ping")
    assert stream.receive() == b"ping"
    return connection, stream


def ending(stream: Any) -> BaseException:
    with pytest.raises((Refused, Unreachable, RunFailed, ProtocolError)) as caught:
        stream.receive()
    return caught.value


def test_the_newest_stream_of_a_key_fences_the_old(coordinator: Any) -> None:
    key = NodeKey.temporary()
    first, old = open_stream(coordinator, key)
    second, new = open_stream(coordinator, key)
    assert isinstance(error := ending(old), Refused)
    assert str(error).startswith("replaced by a newer connection of the same node: where two machines")
    with pytest.raises(Refused, match="replaced"):
        old.send(b"late")
    new.send(b"still here")
    assert new.receive() == b"still here"
    assert coordinator.ended == ["cancelled"]
    first.close()
    second.close()


def test_the_old_handler_has_ended_before_the_new_one_starts(coordinator: Any) -> None:
    running, most = [], []

    async def alone(peer: Peer, link: Link) -> None:
        running.append(link)
        most.append(len(running))
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)  # a handler that tidies up
            running.remove(link)

    coordinator.serve = alone
    with dial(coordinator.invite()) as connection:
        older = connection.stream()
        for _ in range(3):
            assert coordinator.opened.wait(5)
            coordinator.opened.clear()
            newer = connection.stream()
            assert "replaced" in str(ending(older))
            older = newer
        assert coordinator.opened.wait(5)
    assert most == [1, 1, 1, 1]


def test_both_ends_count_their_bytes(coordinator: Any) -> None:
    counts: list[tuple[int, int]] = []

    async def count(peer: Peer, link: Link) -> None:
        assert await link.read() == b"12345"
        await link.write(b"123")
        counts.append((link.received_bytes, link.sent_bytes))

    coordinator.serve = count
    with dial(coordinator.invite()) as connection:
        stream = connection.stream()
        stream.send(b"12345")
        assert list(stream) == [b"123"]
        assert (stream.sent_bytes, stream.received_bytes) == (5, 3)
    assert counts == [(5, 3)]


def test_a_ban_ends_a_live_stream_within_a_second(coordinator: Any) -> None:
    connection, stream = open_stream(coordinator)
    start = time.monotonic()
    coordinator.gate.ban(connection.key_id)
    assert "removed from the run" in str(ending(stream))
    assert time.monotonic() - start < 1.0
    with pytest.raises(Refused, match="removed from the run"):
        connection.ask(b"still?")
    connection.close()


def test_a_revoke_ends_the_streams_of_that_invite_only(coordinator: Any) -> None:
    one, one_stream = open_stream(coordinator)
    invite_id = coordinator.gate.invites()[-1].invite_id
    other, other_stream = open_stream(coordinator)
    start = time.monotonic()
    coordinator.gate.revoke(invite_id)
    assert "revoked" in str(ending(one_stream))
    assert time.monotonic() - start < 1.0
    other_stream.send(b"on")
    assert other_stream.receive() == b"on"
    one.close()
    other.close()


def test_a_revoke_by_another_process_ends_a_live_stream_within_a_second(coordinator: Any) -> None:
    connection, stream = open_stream(coordinator)
    elsewhere = Gate(coordinator.gate.folder, ManualClock(1_700_000_000.0))
    elsewhere.open()
    start = time.monotonic()
    elsewhere.revoke(elsewhere.invites()[-1].invite_id)
    assert "revoked" in str(ending(stream))
    assert time.monotonic() - start < 1.0
    elsewhere.close()
    connection.close()


def test_a_ban_also_ends_a_stream_whose_peer_does_not_read(coordinator: Any) -> None:
    """The dismissal would wait behind megabytes that nobody takes; the handler must not."""

    async def pour(peer: Peer, link: Link) -> None:
        while True:
            await link.write(bytes(1 << 20))

    coordinator.serve = pour
    connection = dial(coordinator.invite())
    connection.stream()
    assert coordinator.opened.wait(5)
    start = time.monotonic()
    coordinator.gate.ban(connection.key_id)
    assert coordinator.over.wait(1.0)
    assert time.monotonic() - start < 1.0
    assert coordinator.ended == ["cancelled"]
    connection.close()


def test_reading_and_writing_go_on_at_once(coordinator: Any) -> None:
    """Each side pours 64 MiB into the other, more than any buffer holds; neither waits for the other."""
    chunk, count = bytes(range(256)) * 4096, 64

    async def both(peer: Peer, link: Link) -> None:
        async def write() -> None:
            for _ in range(count):
                await link.write(chunk)

        writer = asyncio.create_task(write())
        for _ in range(count):
            assert await link.read() == chunk
        await writer

    coordinator.serve = both
    with dial(coordinator.invite()) as connection, ThreadPoolExecutor(1) as pool:
        stream = connection.stream()
        sending = pool.submit(lambda: [stream.send(chunk) for _ in range(count)])
        assert all(message == chunk for message in stream)
        sending.result(10)
    assert coordinator.ended == ["returned"]


def test_a_slow_reader_makes_send_wait_and_close_frees_it(coordinator: Any) -> None:
    release = asyncio.Event()

    async def never_read(peer: Peer, link: Link) -> None:
        await release.wait()

    coordinator.serve = never_read
    connection = dial(coordinator.invite(), limits=Limits(outbox_bytes=4 << 20))
    stream = connection.stream()
    sent = []
    failed = threading.Event()

    def pour() -> None:
        try:
            while len(sent) < 200:
                stream.send(bytes(1 << 20))
                sent.append(1)
        except Unreachable:
            failed.set()

    thread = threading.Thread(target=pour)
    thread.start()
    assert coordinator.opened.wait(5)
    thread.join(0.5)
    assert thread.is_alive()  # 200 MiB are never taken in
    stream.close()
    thread.join(5)
    assert failed.is_set()
    assert len(sent) < 100
    assert stream.receive() is None
    connection.close()


def test_a_blocked_receive_is_freed_by_close_from_another_thread(coordinator: Any) -> None:
    connection, stream = open_stream(coordinator)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stream.receive)
        stream.close()
        assert waiting.result(5) is None
    connection.close()
    with pytest.raises(Unreachable, match="closed"):
        connection.ask(b"x")
    with pytest.raises(Unreachable, match="closed"):
        connection.stream()


def test_finish_sends_what_waits_and_the_coordinator_ends_the_stream(coordinator: Any) -> None:
    connection, stream = open_stream(coordinator)
    for number in range(50):
        stream.send(b"%d" % number)
    stream.finish()
    assert [int(message) for message in stream] == list(range(50))
    assert stream.receive() is None
    with pytest.raises((UsageError, Unreachable)):
        stream.send(b"more")
    connection.close()


def test_a_node_that_goes_away_cancels_its_handler(coordinator: Any) -> None:
    async def wait(peer: Peer, link: Link) -> None:
        await asyncio.Event().wait()

    coordinator.serve = wait
    connection = dial(coordinator.invite())
    connection.stream()
    assert coordinator.opened.wait(5)
    connection.close()
    assert coordinator.over.wait(5)
    assert coordinator.ended == ["cancelled"]
    wait_for(lambda: not coordinator.listener.live_peers(), 5.0, "its peer to be forgotten")


def test_a_stopping_coordinator_says_so_and_the_node_may_try_again(coordinator: Any) -> None:
    connection, stream = open_stream(coordinator)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ending, stream)
        coordinator.stop(grace_seconds=0.1)
        error = waiting.result(10)
    assert isinstance(error, Unreachable)
    assert "stopped" in str(error)
    connection.close()


def test_a_handler_may_end_its_link_with_a_reason(coordinator: Any) -> None:
    async def bench(peer: Peer, link: Link) -> None:
        link.close("this node is benched: its numbers differ")
        await asyncio.Event().wait()

    coordinator.serve = bench
    with dial(coordinator.invite()) as connection:
        assert str(ending(connection.stream())) == "this node is benched: its numbers differ"


@pytest.mark.parametrize("kind", [Refused, Mismatch, UsageError, ProtocolError, Unreachable, RunFailed])
def test_our_errors_cross_the_wire_as_themselves(coordinator: Any, kind: type[Exception]) -> None:
    async def fail(peer: Peer, link: Link) -> None:
        raise kind("leaf 7 has 3 rows, not 4")

    def answer(peer: Peer, request: bytes) -> bytes:
        raise kind("leaf 7 has 3 rows, not 4")

    coordinator.serve, coordinator.answer = fail, answer
    with dial(coordinator.invite()) as connection:
        with pytest.raises(kind, match="leaf 7 has 3 rows, not 4") as caught:
            connection.stream().receive()
        assert type(caught.value) is kind
        with pytest.raises(kind, match="leaf 7 has 3 rows, not 4"):
            connection.ask(b"")


def test_a_bug_in_a_handler_is_a_failed_run_and_shows_no_insides(
    coordinator: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(peer: Peer, link: Link) -> None:
        raise KeyError("secret insides")

    coordinator.serve = fail
    with dial(coordinator.invite()) as connection:
        error = ending(connection.stream())
    assert isinstance(error, RunFailed)
    assert "secret insides" not in str(error)
    assert "secret insides" in caplog.text  # the coordinator's own log has the traceback


def test_messages_over_the_limit_never_leave_either_side(coordinator: Any) -> None:
    async def too_much(peer: Peer, link: Link) -> None:
        await link.write(bytes(6 * 1024 * 1024 + 1))

    with dial(coordinator.invite()) as connection:
        stream = connection.stream()
        with pytest.raises(ProtocolError, match="over the limit of 6,291,456"):
            stream.send(bytes(6 * 1024 * 1024 + 1))
        with pytest.raises(ProtocolError, match="over the limit"):
            connection.ask(bytes(6 * 1024 * 1024 + 1))
        stream.send(bytes(6 * 1024 * 1024))
        assert stream.receive() == bytes(6 * 1024 * 1024)
        coordinator.serve = too_much
        assert isinstance(ending(connection.stream()), ProtocolError)


def test_without_tls_on_loopback_peers_are_what_they_say(make_coordinator: Any) -> None:
    plain = make_coordinator(secure=False, host=None)
    with dial(("localhost", plain.port), secure=False, role="owner") as connection:
        stream = connection.stream()
        stream.send(b"x")
        assert stream.receive() == b"x"
        assert connection.ask(b"ab") == b"ba"
    assert plain.streamed[0].role == "owner"
    assert plain.streamed[0].key_id == connection.key_id


def test_connecting_and_leaving_many_times_leaves_nothing_behind(coordinator: Any) -> None:
    invite, key = coordinator.invite(), NodeKey.temporary()

    def visit() -> None:
        with dial(invite, key=key) as connection:
            stream = connection.stream()
            stream.send(b"x")
            assert stream.receive() == b"x"

    def count() -> tuple[int, int]:
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    for _ in range(20):
        visit()
    settled = wait_until_flat(count)
    for _ in range(200):
        visit()
    threads, descriptors = wait_until_flat(count, settled)
    assert threads <= settled[0] + 1
    assert descriptors <= settled[1] + 3


def wait_until_flat(count: Any, goal: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """The lowest counts within two seconds: gRPC lets go of its threads and sockets a little later."""
    lowest: tuple[int, int] = count()
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline and lowest > goal:
        threading.Event().wait(0.02)
        lowest = min(lowest, count())
    return lowest
