"""A launch as a person starts one, but in this process: torch is imported once, the ranks are real processes."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from manyhands.launch.starting import start


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
