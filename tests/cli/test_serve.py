"""`serve` runs a server file, writes its invite, drains on a signal, and goes on with --resume."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager

import pytest
from commands import JOBS, environment, run

from manyhands.testing.process import wait_for
from manyhands.wire.invite import Invite

SERVER = f"""
import sys
sys.path.insert(0, {JOBS.rsplit("/", 1)[0]!r})
from jobs import build
server = build(port=0, epochs=1_000_000, on_step=lambda step, **_: step == 2 and print("step 2", flush=True))
"""
NODE = f"""
import sys
sys.path.insert(0, {JOBS.rsplit("/", 1)[0]!r})
import torch
torch.set_num_threads(1)
from jobs import model
from manyhands import TrainingNode
TrainingNode(model(), invite="@invite", device="cpu").train()
"""


@contextmanager
def process(*arguments: str, cwd, state):
    env = environment(state, OMP_NUM_THREADS="1")
    started = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_drains_the_run(number, code, tmp_path):
    (tmp_path / "server.py").write_text(SERVER)
    state, invite = tmp_path / "state", tmp_path / "invite"
    serve = ("-m", "manyhands", "serve", "server.py:server", "--invite-file", "invite", "--resume", "auto")
    with process(*serve, cwd=tmp_path, state=state) as serving:
        wait_for(invite.exists, 60.0, "the invite file")
        assert stat.S_IMODE(invite.stat().st_mode) == 0o600
        line = invite.read_text().strip()
        Invite.parse(line)
        with process("-c", NODE, cwd=tmp_path, state=tmp_path / "other") as node:
            printed = ""
            while "step 2" not in printed:
                printed = serving.stdout.readline()
                assert printed, serving.stderr.read()
            serving.send_signal(number)
            _, errors = serving.communicate(timeout=30)
            assert serving.returncode == code, errors
            assert line not in errors
            assert node.wait(30) == 0, node.stderr.read()
    assert list((tmp_path / "checkpoints").glob("run-0001/step-*/model.safetensors"))


def test_resume_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "server.py").write_text(SERVER)
    done = run("serve", "server.py", "--resume", state_dir=tmp_path / "state", cwd=tmp_path)
    assert done.returncode == 2
    assert "resume=True" in done.stderr


def test_a_run_that_ends_reports(tmp_path):
    (tmp_path / "server.py").write_text(SERVER.replace("epochs=1_000_000", "max_steps=3"))
    state, serve = (
        tmp_path / "state",
        ("-m", "manyhands", "serve", "server.py", "--json", "--invite-file", "invite"),
    )
    with process(*serve, cwd=tmp_path, state=state) as serving:
        wait_for((tmp_path / "invite").exists, 60.0, "the invite file")
        with process("-c", NODE, cwd=tmp_path, state=tmp_path / "other") as node:
            output, errors = serving.communicate(timeout=60)
            assert node.wait(30) == 0
    assert serving.returncode == 0, errors
    report = json.loads(output.splitlines()[-1])
    assert (report["steps"], report["nodes_seen"]) == (3, 1)
    assert report["samples_applied"] == report["samples_expected"]
