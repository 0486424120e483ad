"""A tunnel carries bytes through a real sshd, and what is missing is named."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

import pytest
from split_sshd import SSHD, free_port, sshd
from torch import nn

from manyhands.errors import Unreachable, UsageError
from manyhands.split.colab import ColabGPUTrainer, quick_colab_setup
from manyhands.split.tunnels.ngrok import NgrokTunnel
from manyhands.split.tunnels.ssh import SshTunnel

needs_sshd = pytest.mark.skipif(
    SSHD is None, reason="there is no sshd on this machine (apt install openssh-server)"
)


@needs_sshd
@pytest.mark.parametrize("is_fixed", [False, True])
def test_bytes_come_through_a_reverse_tunnel(tmp_path, is_fixed):
    with sshd(tmp_path) as server, socket.create_server(("127.0.0.1", 0)) as here:
        remote_port = free_port() if is_fixed else 0
        tunnel = SshTunnel(server.destination, options=server.options, remote_port=remote_port)
        try:
            host, port = tunnel.open(here.getsockname()[1])
            assert host == "127.0.0.1"
            assert port == remote_port or not is_fixed
            with socket.create_connection((host, port), 10) as caller:
                caller.sendall(b"hello")
                answerer, _ = here.accept()
                with answerer:
                    assert answerer.recv(5) == b"hello"
        finally:
            tunnel.close()
        tunnel.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "manyhands-ssh"]


@needs_sshd
def test_a_gateway_that_does_not_forward_is_named(tmp_path):
    with sshd(tmp_path, forwarding="no") as server:
        tunnel = SshTunnel(server.destination, options=server.options, timeout_seconds=20)
        with pytest.raises(
            Unreachable, match=r"did not get a forwarded port at .*its sshd allows TCP forwarding"
        ):
            tunnel.open(1)


def test_a_gateway_that_is_not_there_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    tunnel = SshTunnel("me@127.0.0.1", options=["-F", "none", "-p", str(port)], timeout_seconds=20)
    with pytest.raises(Unreachable, match=r"did not get a forwarded port at me@127\.0\.0\.1 .*refused"):
        tunnel.open(1)


def test_no_ssh_no_token_and_a_strange_destination_are_named(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="give user@host"):
        SshTunnel("-oProxyCommand=touch x").open(1)
    with pytest.raises(UsageError, match="ngrok needs your token"):
        NgrokTunnel(None).open(1)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no ssh on this machine"):
        SshTunnel("me@127.0.0.1").open(1)


def test_ngrok_without_its_package_is_named():
    program = (
        "import sys; sys.modules['pyngrok'] = None\n"
        "from manyhands.split.tunnels.ngrok import NgrokTunnel\n"
        "NgrokTunnel('token').open(1)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert 'tunnels by ngrok need pyngrok: pip install "manyhands[tunnel]"' in done.stderr


def test_a_tunnel_is_chosen_by_what_is_set_up(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("NGROK_AUTH_TOKEN", "NGROK_REGION"):
        monkeypatch.delenv(name, raising=False)
    trainer = quick_colab_setup(nn.Linear, {"in_features": 3, "out_features": 2}, learning_rate=0.1)
    assert trainer.get_tunnel_info() is None
    assert trainer.model.in_features == 3
    with pytest.raises(UsageError, match=r"no tunnel is set up.*listen_port=PORT"):
        trainer.start_training_with_tunnel()
    with pytest.raises(UsageError, match="MANYHANDS_COLAB__SSH_HOST"):
        trainer.start_training_with_tunnel(tunnel="ssh")
    with pytest.raises(UsageError, match="tunnel='frp' is not one of"):
        trainer.start_training_with_tunnel(tunnel="frp")
    monkeypatch.setenv("NGROK_AUTH_TOKEN", "fromsettings")
    assert trainer._chosen("auto", "eu").region == "eu"
    monkeypatch.setenv("MANYHANDS_COLAB__SSH_HOST", "me@gateway.example")
    assert trainer._chosen("auto", "eu").public_host == "gateway.example"
    assert isinstance(ColabGPUTrainer(ngrok_auth_token="mine")._chosen("ngrok", "us"), NgrokTunnel)
