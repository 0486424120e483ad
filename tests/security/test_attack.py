"""A coordinator under attack: strangers at the port, and peers with a good invite and bad manners.

After each attack the honest node's run has gone on, and the coordinator is about as large as before.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from security_jobs import model

from manyhands.errors import ManyhandsError, ProtocolError
from manyhands.fleet import messages as m
from manyhands.testing import LocalCluster
from manyhands.training.state import ModelState
from manyhands.wire import Connection, NodeKey, Role, certificates, dial, known_invite
from manyhands.wire.certificates import COORDINATOR_NAME
from manyhands.wire.dialer import ClientStream
from manyhands.wire.envelope import pack
from manyhands.wire.invite import Invite
from manyhands.wire.tls import fetch_certificate

JOBS = Path(__file__).with_name("security_jobs.py")
GROWTH_BYTES = 128 << 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(f"{JOBS}:build", nodes=1, arguments={"epochs": 1_000_000}) as running:
        running.wait_step(2)
        yield running


@pytest.fixture(autouse=True)
def unharmed(cluster: LocalCluster) -> Iterator[None]:
    """Five more steps by the honest node, and no more memory than an attack may cost."""
    before = resident_bytes(cluster)
    yield
    step = cluster.status()["step"]
    cluster.wait_status(lambda status: status["step"] > step + 5, 20.0, "five more steps")
    assert resident_bytes(cluster) - before < GROWTH_BYTES
    assert "node-0" in {node["name"] for node in cluster.status()["nodes"]}


def resident_bytes(cluster: LocalCluster) -> int:
    pages = Path(f"/proc/{cluster.pid()}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def invite(cluster: LocalCluster) -> Invite:
    found = known_invite(cluster.state_dir, cluster.port, Role.NODE)
    assert found is not None
    return found


def connect(cluster: LocalCluster) -> socket.socket:
    return socket.create_connection(("127.0.0.1", cluster.port), 10)


def tls(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    return context


# ---- strangers ----

OPENINGS = {
    "silence": b"",
    "half a hello": b"\x16\x03\x01\x02\x00\x01",
    "http2 without tls": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "noise": os.urandom(4096),
}


@pytest.mark.parametrize("opening", OPENINGS)
def test_two_hundred_strangers_that_stay(cluster: LocalCluster, opening: str) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(200):
            stranger = held.enter_context(connect(cluster))
            with contextlib.suppress(OSError):  # dropped already
                stranger.sendall(OPENINGS[opening])
        step = cluster.status()["step"]
        cluster.wait_status(lambda status: status["step"] > step + 5, 20.0, "steps beside strangers")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_two_hundred_handshakes_without_a_certificate(cluster: LocalCluster, version: ssl.TLSVersion) -> None:
    context = tls(version)
    for _ in range(200):
        with connect(cluster) as plain, contextlib.suppress(OSError), context.wrap_socket(plain) as secure:
            assert version is ssl.TLSVersion.TLSv1_3, "TLS 1.2 was spoken"
            # TLS 1.3 ends on our side before the coordinator has looked for a certificate.
            with contextlib.suppress(OSError):
                secure.sendall(OPENINGS["http2 without tls"])
                assert secure.recv(1) == b"", "a stranger was answered"


# ---- peers with an invite ----


class Member:
    """A good key, and a stream on which anything can be said."""

    def __init__(self, cluster: LocalCluster, *, joins: bool = True) -> None:
        self.connection: Connection = dial(invite(cluster), key=NodeKey.temporary())
        self.stream: ClientStream = self.connection.stream()
        if joins:
            self.say(hello())
            assert self.stream.receive()
            self.say(m.Probed({"device": "cpu"}, "0" * 64))

    def say(self, *messages: object) -> None:
        self.stream.send(pack(m.encode(*messages)))  # type: ignore[arg-type]

    def __enter__(self) -> Member:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stream.close()
        self.connection.close()

    def end(self) -> BaseException | None:
        """Read on until the coordinator ends the stream; how it did."""
        try:
            while self.stream.receive() is not None:
                pass
        except ManyhandsError as error:
            return error
        return None


def hello() -> m.Hello:
    state = ModelState(model())
    rows = [(spec.name, str(spec.dtype).removeprefix("torch."), spec.shape) for spec in state.layout().specs]
    return m.Hello(m.PROTOCOL, "0", "flood", "cpu", 1, False, rows, list(state.trainable), None, None)


def test_streams_that_never_say_hello(cluster: LocalCluster) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(8):
            held.enter_context(Member(cluster, joins=False))
        step = cluster.status()["step"]
        status = cluster.wait_status(lambda s: s["step"] > step + 5, 20.0, "steps beside silent streams")
        assert [node["name"] for node in status["nodes"]] == ["node-0"]


def test_megabytes_before_hello(cluster: LocalCluster) -> None:
    with dial(invite(cluster), key=NodeKey.temporary()) as connection:
        for _ in range(25):
            stream = connection.stream()
            with contextlib.suppress(ManyhandsError):
                for _ in range(4):
                    stream.send(bytes(5 << 20))
            with pytest.raises(ManyhandsError):
                stream.receive()
            stream.close()


def test_a_member_that_floods_is_put_out(cluster: LocalCluster) -> None:
    with Member(cluster) as flooding:
        with contextlib.suppress(ManyhandsError):
            for _ in range(60):
                flooding.say(*[m.HandedBack(1 << 30, "x" * 500)] * 50)
        error = flooding.end()
        assert isinstance(error, ProtocolError)
        assert "were refused since its last lease" in str(error)
    cluster.wait_status(lambda status: len(status["nodes"]) == 1, 20.0, "the flooding node to be gone")


@pytest.mark.slow
def test_a_member_that_never_reads_does_not_hold_up_the_run(cluster: LocalCluster) -> None:
    with Member(cluster):
        cluster.wait_nodes(2)
        step = cluster.status()["step"]
        cluster.wait_status(lambda status: status["step"] > step + 20, 30.0, "steps beside a deaf node")


def test_huge_questions_leave_no_memory_behind(cluster: LocalCluster) -> None:
    # Refused requests were kept with the frames of their errors: 16 at once made a gigabyte in seconds.
    def ask(connection: Connection) -> None:
        for _ in range(6):
            with pytest.raises(ProtocolError, match=r"5,242,880 bytes is over the limit of 65,536"):
                connection.ask(bytes(5 << 20), timeout_seconds=30.0)

    with dial(invite(cluster), key=NodeKey.temporary()) as connection, ThreadPoolExecutor(4) as pool:
        for asked in [pool.submit(ask, connection) for _ in range(24)]:
            asked.result(60.0)


@pytest.mark.slow
def test_oversized_metadata(cluster: LocalCluster) -> None:
    line, key = invite(cluster), certificates.new_key()
    leaf = certificates.node_leaf(key.public_key(), certificates.invite_key(line.secret))
    root = fetch_certificate(lambda seconds: connect(cluster), line, 10.0)
    credentials = grpc.ssl_channel_credentials(root, certificates.key_to_pem(key), certificates.to_pem(leaf))
    where, manners = f"127.0.0.1:{cluster.port}", [("grpc.ssl_target_name_override", COORDINATOR_NAME)]
    with grpc.secure_channel(where, credentials, manners) as channel:
        ask = channel.unary_unary("/manyhands/ask")
        for _ in range(10):
            with pytest.raises(grpc.RpcError):
                ask(b"", metadata=(("mh-version", "1"), ("mh-extra", "x" * 200_000)), timeout=10)
