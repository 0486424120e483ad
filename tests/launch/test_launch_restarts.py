"""The example's training, with a rank that is killed: it goes on from its last checkpoint, to the same end."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from launching import Launcher
from safetensors.torch import load_file

from manyhands.testing.process import wait_for

EXAMPLE = Path(__file__).parents[2] / "examples" / "ddp_launch.py"
EPOCHS = 12


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    folder.mkdir()
    return subprocess.Popen(
        [sys.executable, str(EXAMPLE), "--nproc", "2", "--epochs", str(EPOCHS), *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def rank(launcher: psutil.Process, number: int) -> psutil.Process:
    for child in launcher.children():
        with contextlib.suppress(psutil.Error):
            if child.environ().get("RANK") == str(number):
                return child
    raise AssertionError(f"no rank {number}")


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_rank_is_killed_and_the_run_goes_on_from_its_last_checkpoint(launch: Launcher) -> None:
    killed = launch.folder / "killed"
    launcher = start(killed, "--max-restarts", "1")
    third = killed / "checkpoints" / "ddp" / "run-0001" / "step-3"
    try:
        wait_for(third.exists, 240, "the third checkpoint")
        rank(psutil.Process(launcher.pid), 1).kill()
        out, err = launcher.communicate(timeout=200)
    finally:
        launcher.kill()
    assert launcher.returncode == 0, err
    assert "rank 1 was killed first, by SIGKILL" in err
    assert "restart 1 of 1" in err

    whole = start(launch.folder / "whole")
    _, whole_err = whole.communicate(timeout=240)
    assert whole.returncode == 0, whole_err
    _, before, after = (
        [*map(int, re.findall(r"epoch (\d+): loss", part))] for part in out.split("2 processes")
    )
    assert before[0] == 0
    assert 3 <= after[0] <= before[-1] + 1, (before, after)  # on from the last checkpoint
    assert after == list(range(after[0], EPOCHS))
    assert [path.name for path in third.parents[1].glob("run-*")] == ["run-0001"]
    one, other = (
        load_file(folder / f"checkpoints/ddp/run-0001/step-{EPOCHS}/model.safetensors")
        for folder in (launch.folder / "whole", killed)
    )
    assert all(one[name].equal(other[name]) for name in one)
