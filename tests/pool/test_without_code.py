"""Nodes that bring no model: the run's program comes to them, and the bits are those of one process."""

from __future__ import annotations

from pathlib import Path

import pool_jobs
import pytest
from pool_nodes import Pool, wait_for_nodes
from test_trouble import alone, go, start


@pytest.mark.parametrize(
    ("job", "nodes"),
    [("norm", 2), ("tokens", 3), ("bf16", 2), ("sum", 1), ("weighted", 1), ("wide", 2), ("regression", 1)],
)
def test_a_program_gives_the_bits_of_the_model(pool: Pool, tmp_path: Path, job: str, nodes: int) -> None:
    server = start(tmp_path, job)
    pool_jobs.GATE.set()  # a capture needs the generators, which the feeder holds while it waits at the gate
    workers = go(server, pool, job, nodes, no_code=True)
    report = server.wait()
    assert [worker.hear().get("error") for worker in workers] == [None] * nodes
    assert report.weights_sha256 == alone(job)
    assert report.bit_exact


def test_nodes_with_and_without_code_are_one_class(pool: Pool, tmp_path: Path) -> None:
    server = start(tmp_path, "norm", numerics="strict")
    pool_jobs.GATE.set()
    with_model, without = pool.take(2)
    with_model.tell(job="norm", port=server.address[1])
    without.tell(job="norm", port=server.address[1], no_code=True)
    report = server.wait()
    assert [worker.hear().get("error") for worker in (with_model, without)] == [None, None]
    assert len(report.numeric_classes) == 1
    assert report.weights_sha256 == alone("norm")


def test_a_model_that_is_no_program_is_refused_to_such_nodes_only(pool: Pool, tmp_path: Path) -> None:
    server = start(tmp_path, "branches")
    pool_jobs.GATE.set()
    bare, whole = pool.take(2)
    bare.tell(job="branches", port=server.address[1], no_code=True)
    told = bare.hear()
    assert (told["error"], told["code"]) == ("Mismatch", 4) or told["code"] == 4
    assert "cannot be sent as a program" in told["message"]
    assert "pool_jobs.py" in told["message"], "the line of the model at fault"
    assert "TrainingNode(model=" in told["message"], "and the way out"
    whole.tell(job="branches", port=server.address[1])
    assert server.wait().weights_sha256 == alone("branches")
    assert "error" not in whole.hear()


def test_local_data_needs_a_node_that_has_some(pool: Pool, tmp_path: Path) -> None:
    server = start(tmp_path, "norm", data="local")
    (worker,) = pool.take(1)
    worker.tell(job="norm", port=server.address[1], no_code=True)
    assert 'data="local"' in worker.hear()["message"]
    server.stop()
    pool_jobs.GATE.set()
    server.wait()


def test_another_thread_count_is_another_class(pool: Pool, tmp_path: Path) -> None:
    """A machine that cannot have the run's number of threads: refused under strict, admitted and told otherwise."""
    server = start(tmp_path / "strict", "wide", numerics="strict")
    pool_jobs.GATE.set()
    other, same = pool.take(2)
    same.tell(job="wide", port=server.address[1])
    wait_for_nodes(server, 1)
    other.tell(job="wide", port=server.address[1], threads=2)
    told = other.hear()
    assert (told["error"], told["code"]) == ("Mismatch", 4)
    assert "computes other bits than the run's" in told["message"]
    assert "threads=2" in told["message"]
    assert server.wait().bit_exact
    same.hear()

    server = start(tmp_path / "tolerant", "wide", epochs=10)
    pool_jobs.GATE.set()
    for worker, threads in ((same, 1), (other, 2)):
        worker.tell(job="wide", port=server.address[1], threads=threads)
    report = server.wait()
    assert [worker.hear().get("error") for worker in (same, other)] == [None, None]
    assert len(report.numeric_classes) == 2
    assert not report.bit_exact
