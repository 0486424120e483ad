"""What the processes of these tests run with: an empty state folder, one thread, no settings of the caller's."""

from __future__ import annotations

import os

import pytest


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MANYHANDS_")}
    return {**kept, "MANYHANDS_STATE_DIR": str(tmp_path / "state"), "OMP_NUM_THREADS": "1"}
