"""The notebook that lends its machine: a valid file without a secret, whose cell joins a real run, stops and starts."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from manyhands.testing import LocalCluster
from manyhands.wire import known_invite

ROOT = Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / "examples" / "colab_join.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
CODE = "".join(CELLS[0]["source"])
JOB = f"{ROOT / 'tests' / 'testing' / 'jobs.py'}:build"


@pytest.fixture
def start(tmp_path):
    """Run the cell, as a kernel would, on a machine with a state folder of its own."""
    started = []

    def begin(line: str, code: str = CODE, **env: str) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MANYHANDS_")}
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**kept, "MANYHANDS_STATE_DIR": str(tmp_path / "state"), "MANYHANDS_INVITE": line, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_it_is_a_notebook_of_one_cell_and_holds_no_output_and_no_secret():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert {"cells", "metadata", "nbformat", "nbformat_minor"} == set(NOTEBOOK)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"]) == 2
    (cell,) = CELLS
    assert set(cell) == {"cell_type", "execution_count", "id", "metadata", "outputs", "source"}
    assert cell["outputs"] == []
    assert cell["execution_count"] is None
    assert all(isinstance(line, str) for each in NOTEBOOK["cells"] for line in each["source"])
    ast.parse(CODE)
    assert 'SOURCE = ""' in CODE


def test_the_cell_lends_until_the_run_ends(start):
    with LocalCluster(JOB, nodes=0) as cluster:
        line = str(known_invite(cluster.state_dir, cluster.port))
        cell = start(line)
        report = cluster.wait(90)
        printed, errors = cell.communicate(timeout=60)
    assert cell.returncode == 0, errors
    assert report["samples_applied"] == report["samples_expected"]
    assert "joined run run-0001" in printed
    assert "the run is over: given so far" in printed
    assert line not in printed + errors


@pytest.mark.slow
def test_a_stopped_cell_hands_back_and_can_be_run_again(start):
    with LocalCluster(JOB, nodes=0, options={"epochs": 1_000_000}) as cluster:
        line = str(known_invite(cluster.state_dir, cluster.port))
        first = start(line)
        cluster.wait_step(2, 60.0)
        (before,) = cluster.status()["nodes"]
        first.send_signal(signal.SIGINT)
        printed, errors = first.communicate(timeout=30)
        assert "handing back what is leased" in printed
        assert "exit code 130" in errors
        cluster.wait_status(lambda status: not status["nodes"], 10.0, "the node's going")
        start(line)
        cluster.wait_nodes(1)
        assert cluster.status()["nodes"][0]["id"] == before["id"]


@pytest.mark.slow
def test_a_cell_that_cannot_join_says_why(start):
    damaged = start("mh://short@localhost:1")
    printed, errors = damaged.communicate(timeout=60)
    assert "token has 5 characters of 48" in printed
    assert "exit code 2" in errors
    assert "Traceback" not in printed + errors


INSTALLING = """
import importlib.util, subprocess
subprocess.run = lambda command, check: print("RUN", *command[3:])
importlib.util.find_spec = lambda name: None
"""


@pytest.mark.slow
def test_what_is_installed_never_names_torch(start):
    code = INSTALLING + CODE.replace('SOURCE = ""', 'SOURCE = "/the/source"').replace(
        "INVITE = os", "raise SystemExit(0)\nINVITE = os"
    )
    printed, errors = start("", code).communicate(timeout=60)
    commands = [line for line in printed.splitlines() if line.startswith("RUN")]
    assert commands[0] == "RUN install --quiet --no-deps /the/source", errors
    assert "grpcio" in commands[1]
    assert "torch" not in commands[1]
    nothing = start("", INSTALLING + CODE)
    assert "SOURCE is empty" in nothing.communicate(timeout=60)[1]
