"""Taking a port: alone, on the right address, and with a clear word where that cannot be."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from manyhands.errors import UsageError
from manyhands.wire import dial
from manyhands.wire.address import all_interfaces, outward_address
from manyhands.wire.ports import port_holder


def test_a_port_in_use_names_the_process(coordinator: Any, make_coordinator: Any) -> None:
    with pytest.raises(
        UsageError, match=f"cannot listen on 127.0.0.1:{coordinator.port}.*process {os.getpid()} "
    ):
        make_coordinator(port=coordinator.port)
    dial(coordinator.invite()).close()


def test_a_second_listener_never_shares_a_port(coordinator: Any, make_coordinator: Any) -> None:
    """gRPC sets SO_REUSEPORT by default: a second server got every other node, silently."""
    for host in ("127.0.0.1", "localhost", None):
        with pytest.raises(UsageError):
            make_coordinator(port=coordinator.port, host=host)
    with socket.socket() as sharer:
        sharer.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError):
            sharer.bind(("127.0.0.1", coordinator.port))


def test_localhost_is_taken_whole_or_not_at_all(make_coordinator: Any) -> None:
    """gRPC would bind ::1 alone, and leave the nodes of 127.0.0.1 to whoever holds that."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        with pytest.raises(UsageError, match=f"process {os.getpid()} "):
            make_coordinator(host="localhost", port=port)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_plaintext_off_loopback_is_refused(make_coordinator: Any, host: str) -> None:
    with pytest.raises(UsageError, match="not loopback"):
        make_coordinator(host=host, secure=False)


def test_plaintext_is_not_dialled_off_loopback_either() -> None:
    with pytest.raises(UsageError, match="not loopback"):
        dial(("192.0.2.1", 5555), secure=False)


def test_an_address_of_another_machine_cannot_be_bound(make_coordinator: Any) -> None:
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1"):
        make_coordinator(host="192.0.2.1", port=45555)


def test_without_a_host_it_listens_everywhere_and_invites_to_the_outward_address(
    make_coordinator: Any,
) -> None:
    coordinator = make_coordinator(host=None)
    assert coordinator.listener.address == (outward_address(), coordinator.port)
    for host in {outward_address(), "127.0.0.1"}:
        dial(coordinator.invite().with_address(host, coordinator.port)).close()
    assert all_interfaces() in ("::", "0.0.0.0")


def test_an_advertised_address_goes_into_the_invite(make_coordinator: Any) -> None:
    assert make_coordinator(advertise="home.example.org:7777").invite().port == 7777
    coordinator = make_coordinator(advertise="home.example.org")
    assert coordinator.invite().host == "home.example.org"
    assert coordinator.invite().port == coordinator.port


def test_the_holder_of_a_free_port_is_nobody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert f"process {os.getpid()} " in (port_holder(port) or "")
    assert port_holder(port) is None


def test_the_room_imports_no_torch() -> None:
    code = "import sys, manyhands.wire; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_environment_that_grpc_reads_is_set_before_it_is_imported() -> None:
    code = (
        "import os, manyhands.wire; print(os.environ['GRPC_SSL_CIPHER_SUITES'], os.environ['GRPC_VERBOSITY'])"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["ECDHE-RSA-AES128-GCM-SHA256", "ERROR"]
