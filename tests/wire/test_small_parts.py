"""The small parts: addresses, back-off, keys, known files, the outbox, the table of status codes, proxies."""

from __future__ import annotations

import itertools
import random
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyhands import errors
from manyhands.errors import ManyhandsError, ProtocolError, Refused, Unreachable, UsageError
from manyhands.wire import (
    Invite,
    KnownFile,
    NodeKey,
    Role,
    delays,
    find_invite,
    known_invite,
    known_ports,
    read_invite,
)
from manyhands.wire.address import (
    bind_host,
    is_loopback,
    join_address,
    local_addresses,
    outward_address,
    parse_address,
)
from manyhands.wire.failures import MEANING, from_status, to_status
from manyhands.wire.outbox import Outbox
from manyhands.wire.proxy import Route, route_to

NODE = Invite(bytes(range(16)), bytes(16), "127.0.0.1", 5555)
OWNER = Invite(bytes(range(1, 17)), bytes(16), "127.0.0.1", 5555)


# addresses


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("host:1", ("host", 1)),
        (" 10.0.0.1:65535 ", ("10.0.0.1", 65535)),
        ("::1:80", ("::1", 80)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_addresses_are_read(text: str, pair: tuple[str, int]) -> None:
    assert parse_address(text) == pair


def test_a_port_may_be_left_out_where_there_is_a_default() -> None:
    assert parse_address("host", 7) == ("host", 7)
    assert parse_address("[::1]", 7) == ("::1", 7)
    assert join_address("::1", 7) == "[::1]:7"
    with pytest.raises(UsageError, match="no port"):
        parse_address("host")


@pytest.mark.parametrize(
    ("host", "answer"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
     ("192.0.2.1", False), ("::", False), ("no.such.host.invalid", False)],
)  # fmt: skip
def test_loopback(host: str, answer: bool) -> None:
    assert is_loopback(host) is answer


def test_this_machine_has_addresses() -> None:
    assert bind_host("localhost") == "127.0.0.1"
    assert local_addresses()
    assert socket.inet_aton(outward_address())


# back-off


@given(st.integers(0, 2**32))
def test_waits_grow_to_their_cap_and_a_node_is_back_within_five_seconds(seed: int) -> None:
    waits = list(itertools.islice(delays(random.Random(seed)), 20))
    bounds = [0.2, 0.4, 0.8, 1.6, *[2.0] * 16]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))


def test_waits_are_a_function_of_the_generator() -> None:
    first, second = (list(itertools.islice(delays(random.Random(7)), 50)) for _ in range(2))
    assert first == second
    assert len(set(first)) == 50


# node keys


def test_a_node_key_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "state" / "node.key"
    first = NodeKey.load(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert NodeKey.load(path).key_id == first.key_id
    assert len(first.key_id) == 32
    assert [each.name for each in path.parent.iterdir()] == ["node.key"]


def test_two_that_make_the_same_key_at_once_get_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = {key.key_id for key in pool.map(NodeKey.load, [tmp_path / "a" / "node.key"] * 8)}
    assert len(ids) == 1


def test_nodes_of_one_machine_hold_different_keys_and_get_them_back(tmp_path: Path) -> None:
    """Two nodes with one key would end each other's stream for ever."""
    first, second = NodeKey.claim(tmp_path), NodeKey.claim(tmp_path)
    assert first.key_id != second.key_id
    first.release()
    third = NodeKey.claim(tmp_path)
    assert third.key_id == first.key_id
    second.release()
    third.release()


def test_a_key_file_that_is_damaged_or_open_to_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    NodeKey.load(path)
    path.chmod(0o640)
    with pytest.raises(UsageError, match=r"mode 0640.*chmod 600"):
        NodeKey.load(path)
    path.chmod(0o600)
    path.write_bytes(b"junk")
    with pytest.raises(UsageError, match="not a node key"):
        NodeKey.load(path)


# invites on this machine


def test_the_search_order_is_argument_environment_local_file(tmp_path: Path) -> None:
    other = NODE.with_address("elsewhere", 1)
    file = KnownFile(tmp_path, 5555)
    with pytest.raises(Refused, match=r"port 5555; `manyhands invite`") as caught:
        find_invite(None, None, tmp_path, 5555)
    assert caught.value.exit_code == 4
    file.write(NODE, OWNER)
    assert find_invite(None, "", tmp_path, 5555) == NODE
    assert find_invite(None, None, tmp_path, 5555, Role.OWNER) == OWNER
    assert find_invite(None, str(other), tmp_path, 5555) == other
    assert find_invite(str(NODE), str(other), tmp_path, 5555) == NODE
    assert find_invite(NODE, str(other), tmp_path, 5555) == NODE
    assert known_ports(tmp_path) == [5555]
    assert known_invite(tmp_path, 5556) is None
    with pytest.raises(UsageError):
        find_invite("damaged", str(NODE), tmp_path, 5555)


def test_a_known_file_is_private_and_removed_only_by_its_writer(tmp_path: Path) -> None:
    first, second = KnownFile(tmp_path / "s", 5555), KnownFile(tmp_path / "s", 5555)
    first.write(NODE, OWNER)
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o600
    second.write(OWNER, OWNER)
    first.remove()
    assert known_invite(tmp_path / "s", 5555) == OWNER
    second.remove()
    second.remove()
    assert known_invite(tmp_path / "s", 5555) is None
    assert list((tmp_path / "s").iterdir()) == []


def test_a_torn_known_file_is_as_good_as_none(tmp_path: Path) -> None:
    file = KnownFile(tmp_path, 5555)
    file.write(NODE, OWNER)
    file.path.write_bytes(file.path.read_bytes()[:40])
    assert known_invite(tmp_path, 5555) is None


def test_an_invite_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "line"
    path.write_text(f"# from Ada\n{NODE}\n")
    assert read_invite(f"@{path}") == NODE
    path.write_text(f"  manyhands join {NODE}\n")
    assert read_invite(f"@{path}") == read_invite(f"manyhands join {NODE}") == NODE
    path.write_text(f"{NODE}\nmanyhands join {OWNER}\n")
    with pytest.raises(UsageError, match="holds 2 lines") as caught:
        read_invite(f"@{path}")
    assert str(NODE)[5:53] not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read"):
        read_invite(f"@{tmp_path}/missing")


# status codes


def test_every_status_code_has_a_meaning() -> None:
    assert set(MEANING) == set(grpc.StatusCode)


@pytest.mark.parametrize(
    "kind",
    [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ManyhandsError)],
)
def test_every_error_of_ours_has_a_code_that_comes_back_as_it_or_its_parent(
    kind: type[ManyhandsError],
) -> None:
    extra = {errors.BadSample: (7,), errors.StorageError: ("/path",)}.get(kind, ())
    code, details = to_status(kind("what happened", *extra))
    back = from_status(code, details, "host:1")
    assert isinstance(back, errors.RunFailed if kind is ManyhandsError else MEANING[code])
    assert issubclass(kind, type(back)) or kind is ManyhandsError
    assert "what happened" in str(back)


def test_a_peers_words_are_short_printable_and_hide_invites() -> None:
    said = f"\x1b[31m{NODE}\r\n" + "x" * 5000
    text = str(from_status(grpc.StatusCode.PERMISSION_DENIED, said, "host:1"))
    assert "\x1b" not in text
    assert "\n" not in text
    assert len(text) <= 500
    assert str(NODE)[5:53] not in text
    assert str(NODE)[5:53] not in to_status(Refused(f"bad {NODE}"))[1]


# the outbox


def test_an_outbox_keeps_order_and_ends() -> None:
    box = Outbox(100)
    for message in (b"1", b"2"):
        box.put(message)
    box.end(UsageError("finished"))
    with pytest.raises(UsageError, match="finished"):
        box.put(b"3")
    assert list(box) == [b"1", b"2"]


def test_a_full_outbox_waits_for_room_and_one_large_message_always_fits() -> None:
    box = Outbox(10)
    box.put(b"x" * 50)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(box.put, b"y")
        with pytest.raises(TimeoutError):
            waiting.result(0.05)
        assert next(box) == b"x" * 50
        waiting.result(5)
    assert next(box) == b"y"


def test_closing_an_outbox_frees_who_waits_and_forgets_the_rest() -> None:
    box = Outbox(1)
    box.put(b"x")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(box.put, b"y")
        box.close(ProtocolError("over"))
        with pytest.raises(ProtocolError, match="over"):
            waiting.result(5)
    assert list(box) == []


# proxies


def test_loopback_uses_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    for host in ("127.0.0.1", "localhost", "::1"):
        assert route_to(host, 5).options == [("grpc.enable_http_proxy", 0)]
    monkeypatch.setenv("no_proxy", "192.0.2.7")
    assert route_to("192.0.2.7", 5).proxy is None
    assert route_to("192.0.2.8", 5).options == [("grpc.http_proxy", "http://127.0.0.1:1")]


def test_a_proxy_in_the_environment_does_not_hinder_a_local_join(
    coordinator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from manyhands.wire import dial

    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    dial(coordinator.invite()).close()


class HttpProxy:
    """Answers one CONNECT with `reply`, then repeats what it gets."""

    def __init__(self, reply: bytes) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.asked = b""
        self.reply = reply
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        connection, _ = self.server.accept()
        with connection:
            while b"\r\n\r\n" not in self.asked:
                self.asked += connection.recv(4096)
            connection.sendall(self.reply)
            connection.sendall(connection.recv(4096))

    def route(self, login: str = "") -> Route:
        return Route("far.example.org", 5555, f"http://{login}127.0.0.1:{self.server.getsockname()[1]}")

    def close(self) -> None:
        self.thread.join(5)
        self.server.close()


def test_the_way_through_an_http_proxy() -> None:
    proxy = HttpProxy(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n")
    route = proxy.route("ada:p%40ss@")
    assert "p%40ss" not in repr(route)
    with route.connect(5.0) as connection:
        connection.sendall(b"hello")
        assert connection.recv(5) == b"hello"
    proxy.close()
    assert proxy.asked.startswith(b"CONNECT far.example.org:5555 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic YWRhOnBAc3M=\r\n" in proxy.asked


def test_a_proxy_that_says_no_is_quoted() -> None:
    proxy = HttpProxy(b"HTTP/1.1 403 Forbidden\r\n\r\n")
    with pytest.raises(Unreachable, match="said 403 Forbidden"):
        proxy.route().connect(5.0)
    proxy.close()


def test_a_file_of_ours_is_whole_or_absent(tmp_path: Path) -> None:
    from manyhands.wire.private import write_private

    path = tmp_path / "x"
    write_private(path, b"one")
    write_private(path, b"two")
    assert path.read_bytes() == b"two"
    with pytest.raises(errors.StorageError):
        write_private(tmp_path / "missing" / "x", b"")
