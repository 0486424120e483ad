"""A node that is told to go: from another thread, or by a signal. What it held goes to another node at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pool_jobs
import pytest
from pool_nodes import Pool
from test_trouble import alone, go, start

from manyhands.pool.node import TrainingNode


def test_train_is_ended_from_another_thread(pool: Pool, tmp_path: Path) -> None:
    # close() made the node dial again.
    server = start(tmp_path, "norm")
    pool_jobs.GATE.set()
    model, _, _ = pool_jobs.build("norm")
    node = TrainingNode(model, server.address)
    begun = threading.Event()
    thread = threading.Thread(target=lambda: node.train(lambda loss, batch: begun.set()))
    thread.start()
    assert begun.wait(30)
    node.close()
    thread.join(10)
    assert not thread.is_alive()
    workers = go(server, pool, "norm")
    assert server.wait().weights_sha256 == alone("norm")
    assert "error" not in workers[0].hear()


def test_a_node_that_waits_for_its_coordinator_is_ended(tmp_path: Path) -> None:
    model, _, _ = pool_jobs.build("norm")
    node = TrainingNode(model, ("localhost", 1), secure=False)
    thread = threading.Thread(target=node.train)
    thread.start()
    while not thread.is_alive() or node._trainer is None:
        pass
    node.stop()
    thread.join(10)
    assert not thread.is_alive()


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import torch
import pool_jobs
from manyhands import TrainingNode
torch.set_num_threads(1)
TrainingNode(pool_jobs.build("norm")[0], ("localhost", {port})).train(lambda loss, batch: print(batch, flush=True))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_hands_the_lease_back(pool: Pool, tmp_path: Path, number: int, code: int) -> None:
    server = start(tmp_path, "norm", epochs=20)
    pool_jobs.GATE.set()
    script = SCRIPT.format(folder=str(Path(__file__).parent), port=server.address[1])
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode in (code, -number), errors
    assert "handing back what is leased" in errors
    server.stop()
    server.wait()
