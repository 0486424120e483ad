"""A real sshd on loopback, with keys of its own; nothing of this machine's is touched."""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


@dataclass
class Sshd:
    destination: str
    options: list[str]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def sshd(folder: Path, forwarding: str = "yes") -> Iterator[Sshd]:
    """An sshd that lets this user in by a key, until the block ends."""
    assert SSHD is not None
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True, timeout=20
        )
    (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
    port = free_port()
    config = folder / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nAllowTcpForwarding {forwarding}\nPasswordAuthentication no\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)  # where it gives up its rights
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr:
        try:
            said = ""
            while "Server listening" not in said:
                said = process.stderr.readline()
                assert said, "sshd ended before it listened"
            options = ["-F", "none", "-p", str(port), "-i", str(folder / "user")]
            options += ["-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={folder}/known"]
            yield Sshd(f"{getpass.getuser()}@127.0.0.1", options)
        finally:
            process.terminate()
            process.wait()
