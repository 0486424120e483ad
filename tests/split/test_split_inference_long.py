"""Inference of more rows than anyone wants to do twice: flat memory on both sides, and a loader that is killed."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from split_inference_job import rows
from split_sshd import free_port
from split_trainers import TrainerProcess, trainer_process
from split_training_parts import model

SCRIPT = "split_inference_job.py"


def watch(folder: Path, process: TrainerProcess, until_rows: int) -> int:
    """Wait until the watermark says so many rows; how many it says."""
    gap = threading.Event()
    while process.process.poll() is None:
        mark = folder / "watermark.json"
        if mark.exists() and (found := json.loads(mark.read_text())["rows"]) >= until_rows:
            return int(found)
        gap.wait(0.05)
    raise AssertionError("".join(process.errors))


def check(folder: Path, count: int) -> None:
    net = model()
    net.eval()
    with torch.no_grad():
        expected = net(torch.from_numpy(rows(count))).argmax(1).numpy()
    assert np.array_equal(np.load(folder / "indices.npy"), np.arange(count))
    assert np.array_equal(np.load(folder / "predictions.npy"), expected)


@pytest.mark.slow
def test_a_killed_loader_goes_on_without_repeating_or_missing_a_row(tmp_path):
    port, folder, count = free_port(), tmp_path / "out", 40_000
    places = {"state": tmp_path / "state", "folder": tmp_path}
    with trainer_process(SCRIPT, "trainer", port, **places) as trainer:
        trainer.invite()
        before = 0
        for hangs_at in (10_000, 20_000, 30_000):
            with trainer_process(SCRIPT, "loader", port, folder, count, hangs_at, **places) as loader:
                before = watch(folder, loader, before + 1)
                loader.kill()
                assert before <= hangs_at
        with trainer_process(SCRIPT, "loader", port, folder, count, **places) as loader:
            assert loader.line(str(count)) == str(count)
            assert loader.end() == 0
        trainer.process.send_signal(signal.SIGTERM)
        assert trainer.end() in (143, -signal.SIGTERM), "".join(trainer.errors)
    check(folder, count)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_million_rows_leave_the_memory_of_both_sides_flat(tmp_path):
    port, folder, count = free_port(), tmp_path / "out", 1_000_000
    places = {"state": tmp_path / "state", "folder": tmp_path}
    used: list[tuple[int, int]] = []
    with (
        trainer_process(SCRIPT, "trainer", port, **places) as trainer,
        trainer_process(SCRIPT, "loader", port, folder, count, **places) as loader,
    ):
        both = [psutil.Process(p.process.pid) for p in (trainer, loader)]
        for until in range(200_000, 1_000_000, 100_000):
            watch(folder, loader, until)
            used.append(tuple(p.memory_info().rss for p in both))
        assert loader.line(str(count)) == str(count)
    for side in (0, 1):
        assert used[-1][side] <= 1.1 * used[0][side], used
    check(folder, count)
