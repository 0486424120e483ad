"""``manyhands verify`` on pipelines: workers against one process, and targets that are none."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pipeline_jobs import module_job, nothing, residual_job

from manyhands import UsageError
from manyhands.testing import pipelines
from manyhands.testing.comparison import difference

JOBS = Path(__file__).with_name("pipeline_jobs.py")


@pytest.fixture
def here(crew):
    """The workers that are here already, instead of new ones for each comparison."""
    return lambda target, steps: asyncio.run(pipelines.train_on(crew, target, steps))


def test_a_module_on_workers_has_the_bits_of_one_process(here):
    sides = here(module_job, 5)
    assert sides.steps == 5
    assert set(sides.workers) == set(sides.alone)
    assert difference(sides.workers, sides.alone) == (0.0, None)
    assert sides.devices == {"cpu"}
    other = here(module_job, 4)
    assert difference(sides.workers, other.alone)[1] is not None  # a step more or less is found out


def test_what_is_no_pipeline_is_told_so(here):
    with pytest.raises(UsageError, match="must return"):
        here(nothing, 2)
    with pytest.raises(UsageError, match="send_optimizer"):
        here(residual_job, 2)
    assert pipelines.makes_pipeline(module_job)
    assert not pipelines.makes_pipeline(torch.rand)
    assert not pipelines.makes_pipeline({"model": None})


@pytest.mark.slow
def test_the_command_compares_a_pipeline(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "manyhands", "verify", f"{JOBS}:module_job", "--steps", "4", "--json"],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["bit_identical"] is True
    assert (outcome["steps"], outcome["nodes"], outcome["largest_difference"]) == (4, 2, 0.0)
