"""A reverse tunnel by OpenSSH: ``ssh -N -R`` to a machine of one's own that others can reach.

The gateway needs nothing but sshd and an account with a key. For others than the gateway itself to come in, its
sshd_config says ``GatewayPorts clientspecified`` (sshd_config(5)); else the port is on its loopback only, which is
enough for a loader that runs there.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from typing import IO

from manyhands.errors import Unreachable, UsageError
from manyhands.settings.children import child_environment

_OPTIONS = (
    ("BatchMode", "yes"),  # nobody is there to type a password
    ("ExitOnForwardFailure", "yes"),
    ("ServerAliveInterval", "15"),
    ("ServerAliveCountMax", "3"),
    ("LogLevel", "DEBUG1"),  # says when the forwarding stands
)
_ALLOCATED = re.compile(r"Allocated port (\d+) for remote forward")
_STANDS = re.compile(r"remote forward success for: listen (?:\S*:)?(\d+)")
_TOLD_LINES = 5


class SshTunnel:
    """A port of `destination` (``user@host`` or a name of ``~/.ssh/config``) that leads here.

    ``remote_port=0`` lets the gateway choose; ``options`` are further arguments of ``ssh`` (``["-i", "key"]``);
    ``public_host`` is the name under which others know the gateway, where it is not the destination's.
    """

    name = "ssh"

    def __init__(
        self,
        destination: str,
        *,
        remote_port: int = 0,
        options: Sequence[str] = (),
        public_host: str | None = None,
        timeout_seconds: float = 30.0,
    ) -> None:
        self.destination = destination
        self.remote_port = remote_port
        self.options = tuple(options)
        self.public_host = public_host or destination.rpartition("@")[2]
        self.timeout_seconds = timeout_seconds
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._port: int | None = None
        self._known = threading.Event()
        self._said: deque[str] = deque(maxlen=_TOLD_LINES)

    def command(self, port: int) -> list[str]:
        """What is run."""
        if self.destination.startswith("-") or not self.destination:
            raise UsageError(f"ssh destination {self.destination!r}: give user@host")
        options = [word for name, value in _OPTIONS for word in ("-o", f"{name}={value}")]
        forward = f"*:{self.remote_port}:127.0.0.1:{port}"
        return ["ssh", "-N", "-T", *options, *self.options, "-R", forward, "--", self.destination]

    def open(self, port: int) -> tuple[str, int]:
        """See `tunnel.Tunnel`."""
        try:
            self._process = subprocess.Popen(
                self.command(port),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=child_environment({}),
                start_new_session=True,  # a Ctrl-C here drains first, and needs the tunnel for it
            )
        except FileNotFoundError:
            raise UsageError("there is no ssh on this machine: install OpenSSH's client") from None
        assert self._process.stderr is not None
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stderr,), name="manyhands-ssh", daemon=True
        )
        self._reader.start()
        is_known = self._known.wait(self.timeout_seconds)
        if self._port is None:
            self.close()
            last = "; ".join(self._said) or "ssh said nothing"
            late = "" if is_known else f" within {self.timeout_seconds:g} s"
            raise Unreachable(
                f"ssh did not get a forwarded port at {self.destination}{late} ({last}): check that "
                f"`ssh {self.destination} true` works without a password, and that its sshd allows TCP forwarding"
            )
        return self.public_host, self._port

    def close(self) -> None:
        """See `tunnel.Tunnel`."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait()
        if self._reader is not None:
            self._reader.join()
            self._reader = None

    def _read(self, errors: IO[str]) -> None:
        """Keep reading what ssh says: who stops would block it."""
        with errors:
            for line in errors:
                if found := _ALLOCATED.search(line) or (self.remote_port and _STANDS.search(line)):
                    self._port = int(found[1])
                    self._known.set()
                elif not line.startswith("debug1:"):
                    self._said.append(line.strip())
        self._known.set()
