"""Worker processes on the boss's own machine: `BossMan.setup_host(n, local=True)`, tests and `verify`.

They are what `manyhands worker` starts anywhere, told where to dial by a pipe, so no secret stands in a command
line. They end with the boss's stream, and at the latest with its process.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence

from manyhands.settings import state_dir
from manyhands.settings.children import child_environment

_COMMAND = (sys.executable, "-m", "manyhands", "-q", "worker", "-")
_END_SECONDS = 5.0


class LocalWorkers:
    """Some worker processes, from `start` to `close`."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, invite: str, devices: Sequence[str | None], patience_hours: float = 0.0) -> None:
        """Start one a device (None: the best one) that dials `invite`; they write on this process's stderr."""
        for device in devices:
            options = [] if device is None else ["--device", device]
            process = subprocess.Popen(
                [*_COMMAND, "--patience", str(patience_hours), *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=child_environment(
                    {"MANYHANDS_STATE_DIR": str(state_dir()), "MODEL_HOST": "", "MODEL_PORT": ""}
                ),
            )
            self.processes.append(process)
            assert process.stdin is not None
            with contextlib.suppress(
                BrokenPipeError
            ):  # one that ended at once: whoever waits for it will say so
                process.stdin.write(f"{invite}\n".encode())
                process.stdin.close()

    def wait(self) -> int:
        """Wait until all have ended; the largest exit code."""
        return max(process.wait() for process in self.processes)

    def close(self) -> None:
        """Wait until they have ended, and kill those that do not."""
        for process in self.processes:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
