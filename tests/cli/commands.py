"""The real command, as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

JOBS = str(Path(__file__).parents[1] / "testing" / "jobs.py")


def environment(state_dir: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MANYHANDS_")}
    return {**kept, "MANYHANDS_STATE_DIR": str(state_dir), **more}


def run(
    *arguments: str, state_dir: Path, cwd: Path | None = None, timeout: float = 90.0, **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "manyhands", *arguments],
        env=environment(state_dir, **more),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
