"""Ctrl-C at a loader: what it was leased goes back, its workers end with it, and the others finish the job."""

from __future__ import annotations

import signal
import time

import psutil
import pytest
from split_loaders import loader_processes

from manyhands.split.remote import RemoteLoader


def gone_after(state, number, codes, words):
    with (
        RemoteLoader(0, device="cpu").start() as batches,
        loader_processes(
            state, batches.address[1], count=2, samples=600, batch=4, milliseconds=2, workers=2
        ) as loaders,
    ):
        while len(batches.loaders) < 2:
            time.sleep(0.01)
        seen: list[int] = []
        for count, (_, targets) in enumerate(batches):
            if count == 10:
                leaving = psutil.Process(loaders[0].process.pid)
                family = [leaving, *leaving.children(recursive=True)]
                for process in reversed(family):  # as a terminal does: to every process of the group
                    process.send_signal(number)
            seen += targets.tolist()
        assert sorted(seen) == list(range(600))
        code, _, errors = loaders[0].end()
        assert code in codes, errors
        assert words in errors
        assert psutil.wait_procs(family, timeout=10)[1] == []
        assert loaders[1].end()[0] == 0


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYHANDS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "codes"), [(signal.SIGINT, (130, -2)), (signal.SIGTERM, (143, -15))])
def test_a_loader_that_is_interrupted_hands_back_and_ends(state, number, codes):
    gone_after(state, number, codes, "handing back what is leased")
