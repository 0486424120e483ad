"""The examples as a person starts them: one process each, on a port of its own, gone when the test ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from manyhands.pool.target import load_server, parts_of, run_reference

EXAMPLES = Path(__file__).parents[2] / "examples"
torch.set_num_threads(1)


class Terminals:
    """Starts example scripts in an empty folder, with keys and invites of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = {"MANYHANDS_STATE_DIR": str(folder / "state"), "OMP_NUM_THREADS": "1"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MANYHANDS_")}
        self._env = {**kept, **own}
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / script), *arguments],
            cwd=self.folder,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def serve(self, script: str, *arguments: str) -> tuple[subprocess.Popen[str], str]:
        """A coordinator that is ready for nodes, and its port."""
        server = self.start(script, "--port", "0", *arguments)
        for line in server.stdout:
            if found := re.search(r"mh://\S+:(\d+)", line):
                return server, found[1]
        raise AssertionError(f"{script} printed no invite\n{server.stderr.read()}")

    def finish(self, process: subprocess.Popen[str]) -> str:
        """What a script printed (further), when it ended well."""
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        return out

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    opened = Terminals(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def reference_of(monkeypatch: pytest.MonkeyPatch):
    """The weights that one process makes of an example's run."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def weights(script: str, **arguments: object) -> str:
        server = load_server(f"{EXAMPLES / script}:make_server", arguments)
        return run_reference(parts_of(server)).weights_sha256

    return weights
