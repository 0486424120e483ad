"""Nothing of a launch outlives its test."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from launching import Launcher

torch.set_num_threads(1)
OURS = ("OMP_", "GLOO_", "TORCHELASTIC_", "PYTHONPATH", "RANK", "WORLD_SIZE")
"""What a launch may set for its ranks."""


@pytest.fixture
def launch(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Launcher:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MANYHANDS_STATE_DIR", str(tmp_path / "state"))
    return Launcher(tmp_path, capfd)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No process of a test outlives it, the handlers of signals and the environment are as before."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    variables = {name: value for name, value in os.environ.items() if name.startswith(OURS)}
    before = set(psutil.Process().children(recursive=True))  # multiprocessing's own, of tests in other rooms
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert {name: value for name, value in os.environ.items() if name.startswith(OURS)} == variables
    children = [child for child in psutil.Process().children(recursive=True) if child not in before]
    for child in children:
        child.kill()
    assert not children


@pytest.fixture
def is_gone() -> Callable[[int], bool]:
    """Whether a process has ended."""

    def ask(pid: int) -> bool:
        return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    return ask
