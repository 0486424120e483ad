"""Launches as a person starts them, but in this process: torch is imported once, the ranks are real processes."""

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from manyhands.launch.starting import start

torch.set_num_threads(1)
OURS = ("OMP_", "GLOO_", "TORCHELASTIC_", "PYTHONPATH", "RANK", "WORLD_SIZE")
"""What a launch may set for its ranks."""


@dataclass(frozen=True)
class Launched:
    """How a launch ended, and what it printed."""

    code: int
    out: str
    err: str


class Launcher:
    """Writes a script into the test's folder and launches it."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capfd = capfd

    def write(self, script: str, name: str = "script.py") -> Path:
        path = self.folder / name
        path.write_text(textwrap.dedent(script))
        return path

    def __call__(self, script: str | Path, *options: str, arguments: tuple[str, ...] = ()) -> Launched:
        path = self.write(script) if isinstance(script, str) else script
        return self.words(*options, str(path), *arguments)

    def words(self, *words: str) -> Launched:
        self._capfd.readouterr()
        code = start(words)
        return Launched(code, *self._capfd.readouterr())


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
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert {name: value for name, value in os.environ.items() if name.startswith(OURS)} == variables
    children = [child for child in psutil.Process().children(recursive=True) if child.is_running()]
    for child in children:
        child.kill()
    assert not children


@pytest.fixture
def is_gone() -> Callable[[int], bool]:
    """Whether a process has ended."""

    def ask(pid: int) -> bool:
        return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    return ask
