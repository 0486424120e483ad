"""The promise: the bits of one process, whoever computed what. Real processes, real TLS."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pool_jobs
import pytest
from pool_nodes import Pool, wait_for_nodes

from manyhands.pool.server import CentralServer
from manyhands.pool.tally import Report
from manyhands.store.ledger import Ledger
from manyhands.training.reference import reference


def train(
    pool: Pool, folder: Path, job: str, nodes: int, orders: Any = None, **more: Any
) -> tuple[Report, list[Any]]:
    """One run of a job on so many nodes; its report, and what each node said at the end."""
    model, dataset, options = pool_jobs.build(job)
    pool_jobs.GATE.clear()
    workers = pool.take(nodes)
    server = CentralServer(
        model, dataset, ip="localhost", port=0, checkpoint_dir=folder, **{**options, **more}
    )
    server.start(block=False)
    try:
        for worker in workers:
            worker.tell(job=job, port=server.address[1], **(orders or {}))
        wait_for_nodes(server, nodes)
    finally:
        pool_jobs.GATE.set()
        if len(server.status()["nodes"]) < nodes:
            server.stop()
    report = server.wait()
    return report, [worker.hear() for worker in workers]


def alone(job: str) -> tuple[str, list[float]]:
    model, dataset, options = pool_jobs.build(job)
    pool_jobs.GATE.set()
    report = reference(model, dataset, **options)
    return report.weights_sha256, report.losses


@pytest.mark.parametrize("nodes", [1, 2, 3, 5])
def test_any_number_of_nodes_gives_the_same_bits(pool: Pool, tmp_path: Path, nodes: int) -> None:
    report, said = train(pool, tmp_path, "norm", nodes)
    weights, losses = alone("norm")
    assert report.weights_sha256 == weights
    assert report.bit_exact
    assert report.nodes_seen == nodes
    assert report.samples_applied == report.samples_expected == 300
    assert report.final_loss == pytest.approx(losses[-1], rel=1e-6)
    assert [told.get("error") for told in said] == [None] * nodes
    assert (report.steps, report.epochs, report.skipped) == (20, 2, 0)


@pytest.mark.parametrize(
    ("job", "nodes"),
    [
        ("tokens", 2),
        ("branches", 3),
        ("bf16", 2),
        ("bf16-model", 2),
        ("fp16", 2),
        ("sum", 2),
        ("weighted", 2),
        ("augmented", 2),
        ("wide", 3),
    ],
)
def test_any_job_gives_the_bits_of_one_process(pool: Pool, tmp_path: Path, job: str, nodes: int) -> None:
    report, said = train(pool, tmp_path, job, nodes)
    assert [told.get("error") for told in said] == [None] * nodes
    weights, losses = alone(job)
    assert report.weights_sha256 == weights
    assert report.skipped == sum(map(math.isnan, losses)), "fp16 alone may overflow"
    assert report.samples_applied == report.samples_expected - 16 * report.skipped


def test_nodes_that_hold_the_data_compute_the_same(pool: Pool, tmp_path: Path) -> None:
    report, said = train(pool, tmp_path, "augmented", 2, {"local": True}, data="local")
    assert [told.get("error") for told in said] == [None, None]
    assert report.weights_sha256 == alone("augmented")[0]


def test_validation_beside_the_feeder_changes_no_bit(pool: Pool, tmp_path: Path) -> None:
    # Validation items and training items were drawn from one generator on two threads.
    _, dataset, _ = pool_jobs.build("augmented")
    report, _ = train(pool, tmp_path, "augmented", 2, val_dataset=dataset, val_every=1)
    assert report.weights_sha256 == alone("augmented")[0]
    assert all(0.0 <= accuracy <= 1.0 for accuracy in report.history["val_accuracy"])


def test_a_loop_of_the_callers_own_gives_the_same_bits(pool: Pool, tmp_path: Path) -> None:
    report, said = train(pool, tmp_path, "linear", 2, {"by_hand": True})
    assert [told.get("error") for told in said] == [None, None]
    assert sum(told["batches"] for told in said) >= 24
    assert report.weights_sha256 == alone("linear")[0]
    assert report.final_loss is None, "a loop that tells no loss leaves none to report"


def test_the_ledger_holds_each_sample_of_each_epoch_once(pool: Pool, tmp_path: Path) -> None:
    report, said = train(pool, tmp_path, "norm", 3)
    with Ledger(tmp_path / "run-0001" / "journal.sqlite") as ledger:
        assert ledger.samples_applied() == report.samples_applied == 300
        assert ledger.audit() == []
    assert {name for told in said for name in told["figures"]} >= {
        "sent_bytes",
        "received_bytes",
        "comp_time",
    }
    assert sum(told["batches"] for told in said) >= 76, "a loss callback for every micro-batch"


def test_a_resumed_run_ends_with_the_same_bits(pool: Pool, tmp_path: Path) -> None:
    first, _ = train(pool, tmp_path, "norm", 2, max_steps=7)
    assert first.steps == 7
    report, _ = train(pool, tmp_path, "norm", 2, resume=True)
    assert report.weights_sha256 == alone("norm")[0]
    assert report.samples_applied == 300
    assert report.steps == 20


def test_what_the_coordinator_remembers_of_a_node_does_not_grow(pool: Pool, tmp_path: Path) -> None:
    # Where states are pushed while they are computed, leaves of past steps were never forgotten.
    held: list[int] = []

    def on_step(**told: Any) -> None:
        run = next(iter(servers))._run
        assert run is not None
        held.append(max(len(member.holds_leaves) for member in run.coordinator.members.values()))

    servers: list[CentralServer] = []
    pool_jobs.GATE.clear()
    model, dataset, options = pool_jobs.build("wide")
    servers.append(
        CentralServer(
            model, dataset, port=0, checkpoint_dir=tmp_path, on_step=on_step, **{**options, "epochs": 8}
        )
    )
    servers[0].start(block=False)
    (worker,) = pool.take(1)
    worker.tell(job="wide", port=servers[0].address[1])
    wait_for_nodes(servers[0], 1)
    pool_jobs.GATE.set()
    servers[0].wait()
    worker.hear()
    assert len(held) == 24
    assert max(held) <= 2 * options["micro_batches"], "this step's leaves and the next one's"
