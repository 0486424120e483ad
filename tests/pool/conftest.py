"""One thread, a state folder of the tests' own, and node processes that outlive a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pool_nodes import Pool


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(autouse=True)
def own_state(state_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYHANDS_STATE_DIR", str(state_folder))


@pytest.fixture(scope="session")
def pool(state_folder: Path) -> Iterator[Pool]:
    pool = Pool(state_folder)
    yield pool
    pool.close()
