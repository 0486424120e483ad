"""Strangers, broken peers and listeners on the line: nothing of theirs gets in, nothing of ours gets out."""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import socket
import ssl
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from manyhands.errors import ManyhandsError, Unreachable
from manyhands.wire import Limits, NodeKey, certificates, dial
from manyhands.wire.certificates import COORDINATOR_NAME

VERSION = (("mh-version", "1"),)


@contextlib.contextmanager
def raw_channel(coordinator: Any, *options: tuple[str, Any], **extra: Any) -> Iterator[grpc.Channel]:
    """A channel with a good certificate and none of our own client's manners."""
    key = certificates.new_key()
    leaf = certificates.node_leaf(key.public_key(), certificates.invite_key(coordinator.invite().secret))
    credentials = grpc.ssl_channel_credentials(
        coordinator.gate.identity.certificate_pem, certificates.key_to_pem(key), certificates.to_pem(leaf)
    )
    manners = [("grpc.ssl_target_name_override", COORDINATOR_NAME), *options]
    with grpc.secure_channel(f"127.0.0.1:{coordinator.port}", credentials, manners, **extra) as channel:
        yield channel


def still_serves(coordinator: Any) -> None:
    with dial(coordinator.invite()) as connection:
        assert connection.ask(b"abc") == b"cba"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def is_dropped(connection: socket.socket, within_seconds: float) -> bool:
    connection.settimeout(within_seconds)
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "opening",
    [b"", b"\x16", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", os.urandom(100_000)],
    ids=["silence", "half a hello", "http", "http2 without tls", "noise"],
)
def test_strangers_are_dropped_and_others_go_on(coordinator: Any, opening: bytes) -> None:
    strangers = [socket.create_connection(("127.0.0.1", coordinator.port), 5) for _ in range(40)]
    try:
        for stranger in strangers:
            with contextlib.suppress(OSError):
                stranger.sendall(opening)
        still_serves(coordinator)
        assert all(is_dropped(stranger, 4.0) for stranger in strangers)
    finally:
        for stranger in strangers:
            stranger.close()
    assert not coordinator.streamed


def test_a_hello_sent_byte_by_byte_has_the_handshakes_time_and_no_more(coordinator: Any) -> None:
    with socket.create_connection(("127.0.0.1", coordinator.port), 5) as slow:
        slow.sendall(b"\x16\x03\x01\x02\x00\x01")
        start = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - start < 10 and not is_dropped(slow, 0.1):
                slow.sendall(b"\x00")
        assert time.monotonic() - start < 4.0
    still_serves(coordinator)


def test_a_good_leaf_that_never_speaks_http2_is_dropped(coordinator: Any) -> None:
    key = certificates.new_key()
    leaf = certificates.node_leaf(key.public_key(), certificates.invite_key(coordinator.invite().secret))
    pair = coordinator.gate.folder / "pair.pem"
    pair.write_bytes(certificates.key_to_pem(key) + certificates.to_pem(leaf))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(pair)
    plain = socket.create_connection(("127.0.0.1", coordinator.port), 5)
    with plain, context.wrap_socket(plain) as secure:
        assert secure.recv(9)
        assert is_dropped(secure, 5.0)


def test_a_connection_that_never_opens_a_call_is_dropped(coordinator: Any, make_tap: Any) -> None:
    tap = make_tap(coordinator.port)
    connection = dial(coordinator.invite().with_address("127.0.0.1", tap.port))
    sizes = len(tap.seen[1])
    tap.closed.clear()
    assert tap.closed.wait(5.0)  # idle_seconds is 1 here
    assert sizes
    with contextlib.suppress(Unreachable):  # it may ask into the moment of closing, and asks again
        connection.ask(b"ab")
    assert connection.ask(b"ab") == b"ba"
    connection.close()


def test_a_peer_that_goes_deaf_is_dead_after_the_timeout_on_both_sides(
    make_coordinator: Any, make_tap: Any
) -> None:
    limits = Limits(timeout_seconds=1.5)
    coordinator = make_coordinator(limits=limits)
    tap = make_tap(coordinator.port)
    connection = dial(coordinator.invite().with_address("127.0.0.1", tap.port), limits=limits)
    stream = connection.stream()
    stream.send(b"x")
    assert stream.receive() == b"x"
    tap.deaf.set()
    start = time.monotonic()
    with pytest.raises(Unreachable):
        stream.receive()
    assert coordinator.over.wait(4.0)
    assert 0.5 < time.monotonic() - start < 4.0
    assert coordinator.ended in (["cancelled"], ["returned"])
    connection.close()


def test_a_quiet_but_living_peer_is_left_alone(make_coordinator: Any) -> None:
    """Pings of both sides are allowed to each other: too many of them would end in GOAWAY."""
    limits = Limits(timeout_seconds=0.6, idle_seconds=1.0)
    coordinator = make_coordinator(limits=limits)
    with dial(coordinator.invite(), limits=limits) as connection:
        stream = connection.stream()
        stream.send(b"x")
        assert stream.receive() == b"x"
        assert not coordinator.over.wait(3.0)
        stream.send(b"y")
        assert stream.receive() == b"y"


def test_oversized_messages_are_refused_and_take_no_memory(coordinator: Any) -> None:
    huge = bytes(64 << 20)
    with raw_channel(coordinator, ("grpc.max_send_message_length", -1)) as channel:
        before = resident_bytes()
        for _ in range(5):
            with pytest.raises(grpc.RpcError) as caught:
                next(channel.stream_stream("/manyhands/stream")(iter([huge]), metadata=VERSION, timeout=20))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert resident_bytes() - before < 3 * len(huge)
    still_serves(coordinator)


def test_huge_metadata_is_refused(coordinator: Any) -> None:
    metadata = (*VERSION, ("mh-extra", "x" * 100_000))
    with raw_channel(coordinator) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/manyhands/ask")(b"", metadata=metadata, timeout=10)
    assert caught.value.code() is not grpc.StatusCode.OK
    assert not coordinator.asked
    still_serves(coordinator)


def test_compressed_messages_are_refused(coordinator: Any) -> None:
    """64 MiB of zeros in 64 KiB would be read whole before anybody could judge them."""
    assert len(gzip.compress(bytes(1 << 20))) < 2000
    gzipped = raw_channel(coordinator, compression=grpc.Compression.Gzip)
    with gzipped as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/manyhands/ask")(bytes(1 << 20), metadata=VERSION, timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not coordinator.asked


@pytest.mark.parametrize("version", [(), (("mh-version", "one"),), (("mh-version", "9" * 400),)])
def test_calls_without_a_sound_version_are_refused(coordinator: Any, version: Any) -> None:
    with raw_channel(coordinator) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/manyhands/ask")(b"", metadata=version, timeout=10)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert not coordinator.asked


def test_unknown_paths_do_not_exist(coordinator: Any) -> None:
    with raw_channel(coordinator) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/manyhands/shell")(b"", metadata=VERSION, timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_number_of_connections_is_bounded(make_coordinator: Any) -> None:
    coordinator = make_coordinator(limits=Limits(connections=5, handshake_seconds=30.0))
    with contextlib.ExitStack() as stack:
        strangers = [socket.create_connection(("127.0.0.1", coordinator.port), 5) for _ in range(9)]
        for stranger in strangers:
            stack.enter_context(stranger)
        assert sum(is_dropped(stranger, 0.3) for stranger in strangers) == 4
    still_serves(coordinator)


def test_a_flood_of_streams_of_one_key_leaves_one(coordinator: Any) -> None:
    invite, key = coordinator.invite(), NodeKey.temporary()
    with dial(invite, key=key) as connection:
        streams = [connection.stream() for _ in range(60)]
        for stream in streams[:-32]:
            with pytest.raises(ManyhandsError):
                stream.receive()
        assert len(coordinator.listener.live_peers()) <= 1
    with dial(invite, key=key) as connection:
        newest = connection.stream()
        newest.send(b"last")
        assert newest.receive() == b"last"
        assert len(coordinator.listener.live_peers()) == 1


def test_a_capture_shows_neither_token_nor_payload_and_cannot_be_replayed(
    coordinator: Any, make_tap: Any
) -> None:
    """Also: a join through another address works, since no address stands in any certificate."""
    tap = make_tap(coordinator.port)
    invite, payload = coordinator.invite(), os.urandom(32) * 4096
    with dial(invite.with_address("127.0.0.1", tap.port)) as connection:
        stream = connection.stream()
        stream.send(payload)
        assert stream.receive() == payload
    private = certificates.invite_key(invite.secret).private_numbers().private_value.to_bytes(32, "big")
    token = str(invite)[5:53].encode()
    for seen in tap.seen:
        assert len(seen) > len(payload)
        for secret in (token, invite.secret, private, payload[:32], b"/manyhands/stream", b"mh-version"):
            assert secret not in seen

    streamed = len(coordinator.streamed)
    with socket.create_connection(("127.0.0.1", coordinator.port), 5) as replay:
        with contextlib.suppress(OSError):
            replay.sendall(tap.seen[0])
        assert is_dropped(replay, 5.0)
    assert len(coordinator.streamed) == streamed


def test_secrets_are_in_no_log_no_error_and_no_traceback(
    coordinator: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    invite, key = coordinator.invite(), NodeKey.temporary()
    written = [repr(invite), invite.masked, repr(key), repr(coordinator.gate.identity)]
    with dial(invite, key=key) as connection:
        written.append(repr(vars(connection)))
        coordinator.gate.revoke(coordinator.gate.invites()[-1].invite_id)
        for act in (
            lambda: connection.ask(b""),
            lambda: dial(invite),
            lambda: dial(invite.with_address("::1", 1)),
        ):
            with pytest.raises(ManyhandsError) as caught:
                act()
            written += traceback.format_exception(caught.value)
    captured = capfd.readouterr()
    everything = "\n".join([*written, caplog.text, captured.out, captured.err])
    numbers = key.private.private_numbers().private_value
    for secret in (
        str(invite)[5:53],
        str(invite)[10:40],
        invite.secret.hex(),
        repr(invite.secret),
        str(numbers),
    ):
        assert secret not in everything
    assert "PRIVATE KEY" not in everything
