"""One thread, a state folder of the tests' own, and three worker processes that outlive a test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from boss_models import open_crew

from manyhands.pipeline.crew import Crew


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def boss_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("boss-state")


@pytest.fixture(autouse=True)
def own_state(boss_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYHANDS_STATE_DIR", str(boss_state))


@pytest.fixture(scope="session")
def crew(boss_state: Path) -> Iterator[Crew]:
    """Three workers here; each test gives them a model of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYHANDS_STATE_DIR", str(boss_state))
        crew = asyncio.run(open_crew(3))
    yield crew
    crew.close()
