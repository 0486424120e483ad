"""Three machines that hold no code train the text example and a GPT-2, and give one process's bits."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from language_jobs import gpt2, text
from lent import coordinator, join, wait_steps

from manyhands.pool.target import change_options, parts_of, run_reference

pytestmark = pytest.mark.slow
JOBS = str(Path(__file__).with_name("language_jobs.py"))
BUILDERS = {"gpt2": gpt2, "text": text}


EPOCHS = {"gpt2": (4, 40), "text": (2, 8)}
"""Of a run that nothing disturbs, and of one that must last until a late machine is there."""


def alone(name: str, epochs: int) -> str:
    """The hash of the weights that the eager module reaches in one process."""
    server = BUILDERS[name]()
    change_options(server, epochs=epochs)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run_reference(parts_of(server)).weights_sha256
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_three_joined_machines(name, tmp_path):
    epochs = EPOCHS[name][0]
    with coordinator(f"{JOBS}:{name}", epochs=epochs) as cluster:
        state = cluster.state_dir
        with (
            join("--name", "a", state=state, folder=tmp_path / "a") as a,
            join("--name", "b", state=state, folder=tmp_path / "b") as b,
            join("--name", "c", state=state, folder=tmp_path / "c") as c,
        ):
            report = cluster.wait(110)
            assert [node.ends() for node in (a, b, c)] == [0, 0, 0], a.errors + b.errors + c.errors
    assert report["weights_sha256"] == alone(name, epochs)
    assert report["bit_exact"]
    assert report["samples_applied"] == report["samples_expected"]


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_machines_that_die_and_come(name, tmp_path):
    epochs = EPOCHS[name][1]
    with coordinator(f"{JOBS}:{name}", epochs=epochs) as cluster:
        state = cluster.state_dir
        with (
            join("--name", "dies", state=state, folder=tmp_path / "a") as dies,
            join("--name", "loses its child", state=state, folder=tmp_path / "b") as loses,
        ):
            try:
                wait_steps(cluster, 2)
            except TimeoutError as error:
                raise TimeoutError(f"{error}\n{dies.errors}\n{loses.errors}") from None
            dies.process.send_signal(signal.SIGKILL)
            wait_steps(cluster, 1)
            loses.child().kill()
            with join("--name", "late", state=state, folder=tmp_path / "c") as late:
                report = cluster.wait(110)
                assert [loses.ends(), late.ends()] == [0, 0], loses.errors + late.errors
    assert report["samples_applied"] == report["samples_expected"]
    assert report["bit_exact"]
    assert report["weights_sha256"] == alone(name, epochs)
