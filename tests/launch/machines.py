"""Machines for launches, on this one: network namespaces with a wire between them, and real sshds on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
PYTHON = sys.executable


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nobody had a moment ago."""
    with socket.create_server((address, 0)) as probe:
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Machine:
    """A namespace with an address of its own, or this machine (no name)."""

    name: str
    address: str

    def start(self, *words: str, folder: Path) -> subprocess.Popen[str]:
        """A process on it, in a group of its own."""
        place = ["ip", "netns", "exec", self.name] if self.name else []
        return subprocess.Popen(
            [*place, *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


@contextlib.contextmanager
def two_namespaces() -> Iterator[tuple[Machine, Machine]]:
    """Two namespaces, joined by a veth pair, without any name server; skips where they cannot be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the `ip` command")
    names = [f"mh-{os.getpid()}-{letter}" for letter in "ab"]
    wires = [f"mhv{os.getpid() % 100000}{letter}" for letter in "ab"]
    machines = Machine(names[0], "10.77.0.1"), Machine(names[1], "10.77.0.2")
    try:
        for name in names:
            if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
                pytest.skip("network namespaces cannot be made here")
        _ip(
            "link",
            "add",
            wires[0],
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            wires[1],
            "netns",
            names[1],
        )
        for name, wire, machine in zip(names, wires, machines, strict=True):
            _ip("-n", name, "addr", "add", f"{machine.address}/24", "dev", wire)
            _ip("-n", name, "link", "set", wire, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield machines
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def cut(machine: Machine) -> None:
    """Pull its cable: no connection breaks, nothing arrives."""
    _ip("-n", machine.name, "link", "set", f"mhv{os.getpid() % 100000}{machine.name[-1]}", "down")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Sshds:
    """An sshd on each of some loopback addresses, with keys of its own; `command` is the ssh that reaches them."""

    def __init__(self, folder: Path) -> None:
        if SSHD is None or shutil.which("ssh-keygen") is None:
            pytest.skip("there is no sshd on this machine")
        if os.geteuid() != 0:
            pytest.skip("sshd accepts this user's keys only where it runs as root")
        self.folder = folder
        self.port = free_port()
        self._daemons: list[subprocess.Popen[bytes]] = []
        Path("/run/sshd").mkdir(exist_ok=True)
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
            )
        (folder / "config").write_text(
            f"Host *\n Port {self.port}\n IdentityFile {folder}/user\n StrictHostKeyChecking no\n"
            f" UserKnownHostsFile {folder}/known\n LogLevel ERROR\n"
        )
        self.command = f"ssh -F {folder}/config"

    def start(self, address: str) -> None:
        """One more; returns when it accepts connections."""
        config = self.folder / f"sshd-{address}"
        config.write_text(
            f"Port {self.port}\nListenAddress {address}\nHostKey {self.folder}/host\nPidFile none\n"
            f"AuthorizedKeysFile {self.folder}/user.pub\nPasswordAuthentication no\nUsePAM no\nStrictModes no\n"
            "PermitRootLogin yes\n"
        )
        self._daemons.append(
            subprocess.Popen([str(SSHD), "-D", "-f", str(config), "-E", str(self.folder / f"log-{address}")])
        )
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection((address, self.port), 1.0):
                return
            assert time.monotonic() < deadline, (self.folder / f"log-{address}").read_text()

    def close(self) -> None:
        for daemon in self._daemons:
            daemon.terminate()
            daemon.wait(10)
