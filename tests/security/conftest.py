"""One thread, and a state folder of each test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "state"
    monkeypatch.setenv("MANYHANDS_STATE_DIR", str(folder))
    monkeypatch.setenv("MANYHANDS_NETWORK__PATIENCE_HOURS", "0.001")
    monkeypatch.delenv("MANYHANDS_INVITE", raising=False)
    return folder
