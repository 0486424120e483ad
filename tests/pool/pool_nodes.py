"""Node processes that serve run after run, so that torch is imported once in each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from manyhands.pool.server import CentralServer


class Worker:
    """One node process."""

    def __init__(self, state: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("pool_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "MANYHANDS_STATE_DIR": str(state),
                "MANYHANDS_NETWORK__PATIENCE_HOURS": "0.001",
                "OMP_NUM_THREADS": "1",
            },
        )

    def tell(self, **order: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """What the node says when its run has ended; a stuck one is killed after 60 s."""
        assert self._process.stdout is not None
        timer = threading.Timer(60, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        assert line, "the node process is gone"
        told: dict[str, Any] = json.loads(line)
        return told

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


class Pool:
    """Up to five nodes."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._workers: list[Worker] = []

    def take(self, count: int) -> list[Worker]:
        new = [Worker(self._state) for _ in range(count - len(self._workers))]
        for worker in new:
            assert worker.hear() == {"ready": True}
        self._workers += new
        return self._workers[:count]

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


def wait_for_nodes(server: CentralServer, count: int) -> None:
    """Return when so many nodes have joined."""
    never = threading.Event()
    for _ in range(6000):
        if len(server.status()["nodes"]) >= count:
            return
        never.wait(0.005)
    raise AssertionError(f"{count} nodes did not join: {server.status()}")
