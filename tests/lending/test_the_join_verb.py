"""``manyhands join`` from an empty folder: real processes, real TLS, and whatever may happen to them."""

from __future__ import annotations

import signal
import socket

import psutil
import pytest
import torch
from jobs import build
from lent import ENDLESS, OWN_JOBS, coordinator, join, wait_steps

from manyhands.pool.target import parts_of, run_reference
from manyhands.testing.process import wait_for
from manyhands.wire.invite import Invite
from manyhands.wire.known import known_invite


def alone() -> str:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run_reference(parts_of(build())).weights_sha256
    finally:
        torch.set_num_threads(before)


def test_machines_without_code_give_the_bits_of_one_process(tmp_path):
    with (
        coordinator() as cluster,
        join("--name", "left", state=cluster.state_dir, folder=tmp_path / "a") as left,
        join("--name", "right", state=cluster.state_dir, folder=tmp_path / "b") as right,
    ):
        report = cluster.wait(90)
        assert [left.ends(), right.ends()] == [0, 0], left.errors + right.errors
        assert report["weights_sha256"] == alone()
        assert report["bit_exact"]
        assert "joined run run-0001: computing on cpu" in left.errors
        printed = left.process.stdout.read() + right.process.stdout.read()
        assert printed.count("given so far") == report["nodes_seen"] or "given so far" in printed


def test_a_compute_process_that_is_killed_is_replaced(tmp_path):
    with coordinator() as cluster, join(state=cluster.state_dir, folder=tmp_path / "a") as joined:
        joined.child().kill()
        report = cluster.wait(90)
        assert joined.ends() == 0, joined.errors
        assert report["weights_sha256"] == alone()
    assert "killed by SIGKILL" in joined.errors
    assert "started again (1 of 3 times" in joined.errors


@pytest.mark.slow
def test_three_deaths_with_one_program_are_enough(tmp_path):
    with coordinator(**ENDLESS) as cluster, join(state=cluster.state_dir, folder=tmp_path / "a") as joined:
        for _ in range(3):
            wait_steps(cluster)
            child = joined.child()
            child.send_signal(signal.SIGSEGV)
            wait_for(lambda child=child: not child.is_running(), 20.0, "the child's end")
        assert joined.ends() == 4
        assert "SIGSEGV" in joined.errors
        assert "3rd time with the program of run run-0001" in joined.errors


@pytest.mark.slow
def test_the_compute_process_does_not_outlive_its_agent(tmp_path):
    with coordinator(**ENDLESS) as cluster, join(state=cluster.state_dir, folder=tmp_path / "a") as joined:
        wait_steps(cluster)
        child = joined.child()
        joined.process.kill()
        child.wait(10)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_hands_the_lease_back(number, code, tmp_path):
    with coordinator(**ENDLESS) as cluster, join(state=cluster.state_dir, folder=tmp_path / "a") as joined:
        wait_steps(cluster)
        child = joined.child()
        joined.process.send_signal(number)
        assert joined.ends(20) == code, joined.errors
        assert not child.is_running()
        cluster.wait_status(lambda s: not s["nodes"], 10.0, "the node's going")
        assert "handing back what is leased" in joined.errors
        assert "its owner stopped it" in cluster.logs() or "left" in cluster.logs()


@pytest.mark.slow
def test_a_coordinator_that_comes_back_finds_the_same_child(tmp_path):
    with coordinator(**ENDLESS) as cluster, join(state=cluster.state_dir, folder=tmp_path / "a") as joined:
        wait_steps(cluster)
        child = joined.child()
        cluster.kill_coordinator()
        wait_for(lambda: "waiting for the coordinator" in joined.errors, 30.0, "a line that says so")
        cluster.restart_coordinator()
        wait_steps(cluster, 3)
        assert joined.child().pid == child.pid
        assert joined.process.poll() is None


@pytest.mark.slow
def test_a_machine_that_its_owner_pauses_comes_back(tmp_path):
    with coordinator(**ENDLESS) as cluster, join(state=cluster.state_dir, folder=tmp_path / "a") as joined:
        wait_steps(cluster)
        both = [joined.child(), psutil.Process(joined.process.pid)]
        for process in both:
            process.suspend()
        wait_for(lambda: all(p.status() == psutil.STATUS_STOPPED for p in both), 10.0, "the pause")
        for process in both:
            process.resume()
        wait_steps(cluster, 3)
        assert joined.child().pid == both[0].pid


@pytest.mark.slow
def test_processors_make_lanes_with_names_and_keys_of_their_own(tmp_path):
    with coordinator(**ENDLESS) as cluster:
        state, folder = cluster.state_dir, tmp_path / "a"
        with join("--cpus", "2", "--name", "box", state=state, folder=folder) as joined:
            cluster.wait_nodes(2)
            nodes = cluster.status()["nodes"]
            assert sorted(node["name"] for node in nodes) == ["box#1", "box#2"]
            assert len({node["id"] for node in nodes}) == 2
            assert len(joined.children) == 2
            joined.process.send_signal(signal.SIGTERM)
            assert joined.ends(20) == 143


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--nproc", "0"], 2, "--nproc"),
        (["--nproc", "2", "--device", "all"], 2, "--nproc N makes N processes one node"),
        (["--nproc", "2", "--cpus", "1"], 2, "--nproc 2 with --cpus 1"),
        (["--cpus", "4096"], 2, "--cpus 4096"),
        (["--device", "abacus"], 2, "abacus"),
        (["mh://short@localhost:1"], 2, "token"),
        (["@/no/such/file"], 2, "/no/such/file"),
    ],
)
def test_bad_input_is_named(arguments, code, says, tmp_path):
    with coordinator() as cluster, join(*arguments, state=cluster.state_dir, folder=tmp_path / "a") as joined:
        assert joined.ends() == code
        assert says in joined.errors
        assert "Traceback" not in joined.errors


def test_nobody_to_join(tmp_path):
    with join(state=tmp_path / "state", folder=tmp_path / "a") as joined:
        assert joined.ends() == 4
        assert "no invite" in joined.errors


def test_a_model_that_is_no_program_is_refused_with_its_line_and_the_way_out(tmp_path):
    with (
        coordinator(f"{OWN_JOBS}:fickle") as cluster,
        join(state=cluster.state_dir, folder=tmp_path / "a") as joined,
    ):
        assert joined.ends() == 4
        assert "lent_jobs.py" in joined.errors
        assert "TrainingNode(model=" in joined.errors
        assert "Traceback" not in joined.errors


def test_a_coordinator_that_is_not_the_one_in_the_invite_is_refused(tmp_path):
    with coordinator() as cluster, coordinator() as other:
        line = known_invite(cluster.state_dir, cluster.port)
        assert line is not None
        wrong = str(line.with_address("127.0.0.1", other.port))
        with join(wrong, state=tmp_path / "state", folder=tmp_path / "a") as joined:
            assert joined.ends() == 4
            assert "its key is not the pinned one" in joined.errors
            assert wrong.partition("@")[0] not in joined.errors


def dead_line(port: int) -> str:
    return str(Invite(bytes(16), bytes(16), "127.0.0.1", port))


@pytest.fixture
def free_port():
    with socket.socket() as held:  # bound and not listening: nobody answers here
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.mark.parametrize("way", ["argument", "file", "input", "environment"])
def test_an_invite_is_read_wherever_it_is_and_patience_ends(way, free_port, tmp_path):
    line = dead_line(free_port)
    (tmp_path / "line").write_text(f"{line}\n")
    argument = {"argument": [line], "file": [f"@{tmp_path / 'line'}"], "input": ["-"], "environment": []}[way]
    more = {"MANYHANDS_INVITE": line} if way == "environment" else {}
    given = {"state": tmp_path / "state", "folder": tmp_path / "a", "said": f"{line}\n"}
    with join(*argument, "--patience", "0", **given, **more) as joined:
        assert joined.ends() == 3
        assert f"127.0.0.1:{free_port}" in joined.errors
        assert line not in joined.errors


@pytest.mark.slow
def test_whoever_waits_can_be_interrupted(free_port, tmp_path):
    with join(dead_line(free_port), state=tmp_path / "state", folder=tmp_path / "a") as joined:
        wait_for(lambda: "waiting for the coordinator" in joined.errors, 30.0, "a line that says so")
        joined.process.send_signal(signal.SIGINT)
        assert joined.ends(20) == 130
