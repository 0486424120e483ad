"""``manyhands join --on ray`` on a real Ray cluster: nodes placed, killed with their machine, and back again."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from jobs import build
from lent import ENDLESS, Joined, coordinator, wait_steps
from ray_machines import RayMachines, ray_machines

from manyhands.pool.target import parts_of, run_reference
from manyhands.testing import LocalCluster
from manyhands.testing.process import wait_for
from manyhands.wire.invite import Invite
from manyhands.wire.known import known_invite

LONG = {"epochs": 300}


@contextmanager
def join_on_ray(
    cluster: LocalCluster, machines: RayMachines, folder: Path, *arguments: str
) -> Iterator[Joined]:
    line = str(known_invite(cluster.state_dir, cluster.port))
    file = folder.with_suffix(".line")
    file.write_text(line)
    joined = Joined(
        ("join", f"@{file}", "--on", "ray", "--address", machines.address, *arguments),
        folder.with_suffix(".state"),
        folder,
        None,
        {},
    )
    try:
        yield joined
    finally:
        joined.close()


def alone(**options) -> str:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run_reference(parts_of(build(**options))).weights_sha256
    finally:
        torch.set_num_threads(before)


def token_of(cluster: LocalCluster) -> bytes:
    return str(known_invite(cluster.state_dir, cluster.port)).removeprefix("mh://").partition("@")[0].encode()


@pytest.mark.slow
def test_a_ray_cluster_lends_and_its_logs_have_no_secret(tmp_path):
    with (
        coordinator() as cluster,
        ray_machines(1) as machines,
        join_on_ray(cluster, machines, tmp_path / "a") as joined,
    ):
        token = token_of(cluster)
        report = cluster.wait(90)
        assert joined.ends() == 0, joined.errors
        assert report["weights_sha256"] == alone()
        assert "1 nodes on a Ray cluster of 1 machine" in joined.errors
        logs = [file for file in machines.logs.rglob("*") if file.is_file()]
        assert logs
        assert not [file for file in logs if token in file.read_bytes()]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_machine_of_the_cluster_is_killed_and_the_weights_are_the_same(tmp_path):
    with (
        ray_machines(2, 2) as machines,
        coordinator(**LONG) as cluster,
        join_on_ray(cluster, machines, tmp_path / "a", "--count", "4") as joined,
    ):
        cluster.wait_nodes(4, 90)
        machines.kill(1)
        report = cluster.wait(120)
        assert joined.ends() == 0, joined.errors
        assert report["nodes_seen"] >= 4
        assert report["samples_applied"] == report["samples_expected"]
        assert report["weights_sha256"] == alone(**LONG)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nodes_of_a_killed_machine_are_placed_on_another_with_room(tmp_path):
    with (
        ray_machines(4, 2) as machines,
        coordinator(**ENDLESS) as cluster,
        join_on_ray(cluster, machines, tmp_path / "a", "--count", "4") as joined,
    ):
        cluster.wait_nodes(4, 90)
        before = {node["id"] for node in cluster.status()["nodes"]}
        machines.kill(1)
        cluster.wait_status(lambda s: len({n["id"] for n in s["nodes"]} & before) < 4, 60.0, "their going")
        cluster.wait_nodes(4, 120)
        wait_steps(cluster)
        joined.process.send_signal(signal.SIGTERM)
        assert joined.ends(40) == 143, joined.errors
        cluster.wait_status(lambda s: not s["nodes"], 30.0, "the nodes' going")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nodes_follow_the_cluster_as_it_grows_and_shrinks(tmp_path):
    with (
        ray_machines(1) as machines,
        coordinator(**ENDLESS) as cluster,
        join_on_ray(cluster, machines, tmp_path / "a") as joined,
    ):
        cluster.wait_nodes(1, 90)
        machines.add(2)
        cluster.wait_nodes(3, 120)
        machines.kill(1)
        wait_for(lambda: joined.errors.count("went with its machine") == 2, 120.0, joined.errors)
        cluster.wait_status(lambda s: len(s["nodes"]) == 1, 60.0, "their going")
        wait_steps(cluster)
        assert joined.process.poll() is None


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--count", "2"], 2, "--on ray"),
        pytest.param(["--address", "127.0.0.1:6379"], 2, "--on ray", marks=pytest.mark.slow),
        (["--on", "ray", "--address", "127.0.0.1:1"], 3, "no Ray cluster answers at 127.0.0.1:1"),
        pytest.param(["--on", "hamster"], 2, "hamster", marks=pytest.mark.slow),
    ],
)
def test_bad_input_is_named(arguments, code, says, tmp_path):
    line = Invite(bytes(16), bytes(16), "127.0.0.1", 5555)
    joined = Joined(("join", "-", *arguments), tmp_path / "state", tmp_path / "a", f"{line}\n", {})
    try:
        assert joined.ends() == code, joined.errors
        assert says in joined.errors
        assert "Traceback" not in joined.errors
    finally:
        joined.close()
