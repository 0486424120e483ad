"""status, stop and invite against a run that really goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from commands import JOBS, environment, last_json, run

from manyhands.testing import LocalCluster
from manyhands.wire import Role, known_invite
from manyhands.wire.invite import Invite

KEYS = {"run", "state", "epoch", "step", "loss", "nodes", "ledger"}
NODE_KEYS = {
    "id", "name", "state", "device", "numeric_class", "samples", "samples_per_s", "sent_bytes", "received_bytes",
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(f"{JOBS}:build", nodes=1, arguments={"epochs": 1_000_000}) as running:
        running.wait_step(1)
        yield running


def test_status_for_people_and_programs(cluster):
    done = run("status", "--json", state_dir=cluster.state_dir)
    answer = last_json(done)
    assert done.returncode == 0
    assert set(answer) == KEYS
    assert set(answer["nodes"][0]) == NODE_KEYS
    assert set(answer["ledger"]) == {"applied", "leased", "reissued", "refused"}
    assert answer["state"] == "running"
    table = run("status", "--port", str(cluster.port), state_dir=cluster.state_dir).stdout
    assert "node-0" in table
    assert f"run {answer['run']}" in table
    assert "mh://" not in done.stdout + done.stderr + table


def test_invites_are_made_used_and_revoked(cluster, tmp_path):
    made = run("invite", "--uses", "2", "--role", "observer", state_dir=cluster.state_dir)
    assert made.returncode == 0, made.stderr
    line = made.stdout.split()[-1]
    ended = made.stderr.split()[-1]
    Invite.parse(line)
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "line").write_text(line + "\n")
    assert run("status", f"@{tmp_path / 'line'}", state_dir=elsewhere).returncode == 0
    for _ in range(3):  # as often as it likes: a machine takes one use of an invite
        assert run("status", "--json", state_dir=elsewhere, MANYHANDS_INVITE=line).returncode == 0
    refused = run("stop", state_dir=elsewhere, MANYHANDS_INVITE=line)
    assert refused.returncode == 4
    assert "observer" in refused.stderr
    assert run("invite", "--revoke", ended, state_dir=cluster.state_dir).returncode == 0
    after = run("status", f"@{tmp_path / 'line'}", state_dir=elsewhere)
    assert after.returncode == 4
    assert "revoked" in after.stderr
    assert line not in refused.stderr + after.stderr


def test_a_nodes_invite_asks_nothing(cluster, tmp_path):
    mine = known_invite(cluster.state_dir, cluster.port, Role.NODE)
    done = run("status", state_dir=tmp_path, MANYHANDS_INVITE=str(mine))
    assert done.returncode == 4
    assert "role is node" in done.stderr


def test_a_banned_node_goes(cluster):
    number = cluster.start_node("banned-one")
    cluster.wait_nodes(2)
    (node,) = [n for n in cluster.status()["nodes"] if n["name"] == "banned-one"]
    done = run("invite", "--ban", node["id"], state_dir=cluster.state_dir)
    assert done.returncode == 0, done.stderr
    assert cluster.returncode(number) == 4


def test_nobody_there_is_exit_3_and_no_invite_exit_4(tmp_path, cluster):
    nobody = known_invite(cluster.state_dir, cluster.port, Role.OWNER).with_address("127.0.0.1", 9)
    done = run("status", state_dir=tmp_path, MANYHANDS_INVITE=str(nobody))
    assert done.returncode == 3
    assert "127.0.0.1:9" in done.stderr
    assert run("stop", state_dir=tmp_path).returncode == 4


def test_watch_ends_with_the_run_and_stop_drains_it(cluster):
    watching = subprocess.Popen(
        [sys.executable, "-m", "manyhands", "status", "--watch", "--json"],
        env=environment(cluster.state_dir),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    assert set(json.loads(watching.stdout.readline())) == KEYS
    done = run("stop", "--json", state_dir=cluster.state_dir)
    assert last_json(done) == {"stopping": True}
    report = cluster.wait()
    assert 0 < report["samples_applied"] < report["samples_expected"]
    assert cluster.returncode(0) == 0
    _, errors = watching.communicate(timeout=30)
    assert watching.returncode == 0, errors
    assert "has ended" in errors


def test_a_reader_that_leaves_gets_no_traceback(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "manyhands", "config", "show", "--json"],
        env=environment(tmp_path),
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert done.stderr == ""
