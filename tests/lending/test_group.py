"""A node of several processes: one node to the run, the bits of one process, and ranks that are killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from jobs import build
from lent import JOBS, Joined, coordinator, wait_steps

from manyhands.pool.target import parts_of, run_reference
from manyhands.testing import LocalCluster
from manyhands.testing.process import wait_for


def alone(**options) -> str:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run_reference(parts_of(build(**options))).weights_sha256
    finally:
        torch.set_num_threads(before)


def ranks(joined: Joined) -> list[psutil.Process]:
    """The processes that compute with the first one."""
    return [p for p in joined.child().children() if "manyhands.pool.lending.child" in p.cmdline()]


LONG = {"epochs": 50}


@contextmanager
def gated(folder: Path, **options) -> Iterator[LocalCluster]:
    """A run that goes slowly until `open_gate`: its ranks load torch for longer than a run takes."""
    arguments = {"gate": str(folder / "gate")}
    with LocalCluster(f"{JOBS}:build", nodes=0, arguments=arguments, options=options) as cluster:
        yield cluster


def open_gate(folder: Path) -> None:
    (folder / "gate").touch()


@contextmanager
def group(cluster: LocalCluster, folder: Path, *arguments: str) -> Iterator[Joined]:
    """A node whose ranks say when they take part."""
    joined = Joined(("-v", "join", *arguments), cluster.state_dir, folder, None, {})
    try:
        yield joined
    finally:
        joined.close()


def takes_part(joined: Joined, rank: int, times: int = 1) -> None:
    said = f"rank {rank} takes part"
    wait_for(lambda: joined.errors.count(said) >= times, 60.0, f"{said}\n{joined.errors}")


def test_ranks_give_the_bits_of_one_process_as_one_node(tmp_path):
    with gated(tmp_path, **LONG) as cluster, group(cluster, tmp_path / "a", "--nproc", "2") as joined:
        takes_part(joined, 1)
        open_gate(tmp_path)
        report = cluster.wait(90)
        assert joined.ends() == 0, joined.errors
        assert report["nodes_seen"] == 1
        assert report["weights_sha256"] == alone(**LONG)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_rank_that_is_killed_is_replaced_and_no_sample_is_lost(tmp_path):
    with gated(tmp_path, **LONG) as cluster, group(cluster, tmp_path / "a", "--nproc", "3") as joined:
        takes_part(joined, 1)
        takes_part(joined, 2)
        ranks(joined)[0].kill()
        wait_for(lambda: "it is started again" in joined.errors, 30.0, joined.errors)
        open_gate(tmp_path)
        report = cluster.wait(90)
        assert joined.ends() == 0, joined.errors
        assert report["weights_sha256"] == alone(**LONG)
        assert report["samples_applied"] == report["samples_expected"]
    assert "killed by SIGKILL" in joined.errors


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 60, "compression": "int8"},
        {"epochs": 60, "micro_batches": 7},  # shares of unlike size, and absent leaves
        {"epochs": 60, "clip_norm": 0.1, "batch_size": 22},  # a short last step
    ],
)
def test_shares_of_any_shape_add_up_to_the_same_bits(options, tmp_path):
    with gated(tmp_path, **options) as cluster, group(cluster, tmp_path / "a", "--nproc", "3") as joined:
        takes_part(joined, 1)
        takes_part(joined, 2)
        open_gate(tmp_path)
        report = cluster.wait(90)
        assert report["weights_sha256"] == alone(**options)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_group_beside_a_single_node(tmp_path):
    with (
        gated(tmp_path, **LONG) as cluster,
        group(cluster, tmp_path / "a", "--nproc", "2", "--name", "pair") as pair,
        group(cluster, tmp_path / "b", "--name", "single") as single,
    ):
        takes_part(pair, 1)
        open_gate(tmp_path)
        report = cluster.wait(90)
        assert [pair.ends(), single.ends()] == [0, 0], pair.errors + single.errors
        assert report["nodes_seen"] == 2
        assert report["weights_sha256"] == alone(**LONG)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_first_process_takes_the_others_with_it_and_a_new_group_comes(tmp_path):
    with gated(tmp_path, **LONG) as cluster, group(cluster, tmp_path / "a", "--nproc", "2") as joined:
        takes_part(joined, 1)
        others = ranks(joined)
        joined.child().kill()
        for other in others:
            other.wait(10)
        open_gate(tmp_path)
        report = cluster.wait(90)
        assert joined.ends() == 0, joined.errors
        assert report["weights_sha256"] == alone(**LONG)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_coordinator_that_comes_back_finds_the_same_ranks(tmp_path):
    with coordinator(epochs=1_000_000) as cluster, group(cluster, tmp_path / "a", "--nproc", "2") as joined:
        takes_part(joined, 1)
        before = [rank.pid for rank in ranks(joined)]
        cluster.kill_coordinator()
        cluster.restart_coordinator()
        takes_part(joined, 1, times=2)
        assert [rank.pid for rank in ranks(joined)] == before


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_rank_that_is_stopped_holds_nobody_up(tmp_path):
    with coordinator(epochs=1_000_000) as cluster, group(cluster, tmp_path / "a", "--nproc", "2") as joined:
        takes_part(joined, 1)
        [other] = ranks(joined)
        other.suspend()
        wait_steps(cluster, 20)
        assert joined.errors.count("its part is computed by rank 0") == 1
        other.resume()
        wait_steps(cluster, 20)
        assert ranks(joined) == [other]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_rank_that_is_stopped_while_it_is_sent_a_large_state_is_replaced(tmp_path):
    large = {"width": 400_000, "epochs": 1_000_000}  # 24 MB: more than fits into the channel
    with (
        LocalCluster(f"{JOBS}:build", nodes=0, arguments=large) as cluster,
        group(cluster, tmp_path / "a", "--nproc", "2") as joined,
    ):
        takes_part(joined, 1)
        ranks(joined)[0].suspend()
        takes_part(joined, 1, times=2)
        assert "it took nothing for 10 s" in joined.errors
        wait_steps(cluster)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_rank_that_was_stopped_for_a_while_changes_no_bit(tmp_path):
    with gated(tmp_path, **LONG) as cluster, group(cluster, tmp_path / "a", "--nproc", "2") as joined:
        takes_part(joined, 1)
        [other] = ranks(joined)
        other.suspend()
        wait_for(lambda: "its part is computed by rank 0" in joined.errors, 60.0, joined.errors)
        other.resume()
        open_gate(tmp_path)
        report = cluster.wait(90)
        assert joined.ends() == 0, joined.errors
        assert report["weights_sha256"] == alone(**LONG)
        assert report["samples_applied"] == report["samples_expected"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_rank_that_dies_three_times_is_left_out(tmp_path):
    with coordinator(epochs=1_000_000) as cluster, group(cluster, tmp_path / "a", "--nproc", "2") as joined:
        for times in (1, 2, 3):
            takes_part(joined, 1, times)
            ranks(joined)[0].kill()
        wait_for(lambda: "goes on without it" in joined.errors, 30.0, joined.errors)
        wait_steps(cluster)
        assert not ranks(joined)
