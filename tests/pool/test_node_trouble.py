"""What nodes cannot compute: is it the node, the data or the model? The coordinator tries itself."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pool_jobs
import pytest
import torch
from pool_nodes import Pool, wait_for_nodes
from test_trouble import alone, go, start

from manyhands.errors import BadSample, RunFailed
from manyhands.pool.node import TrainingNode
from manyhands.pool.server import CentralServer
from manyhands.store.ledger import Ledger
from manyhands.training.reference import reference


def test_an_item_that_only_nodes_load_stops_the_run(pool: Pool, tmp_path: Path) -> None:
    # Each node that met it died, and the coordinator waited for the next one.
    server = start(tmp_path, "bad-later", data="local")
    workers = go(server, pool, "bad-later", 2, local=True)
    with pytest.raises(BadSample, match=r"dataset\[30\] raised OSError: no file for 30") as caught:
        server.wait()
    assert caught.value.index == 30
    assert [worker.hear()["error"] for worker in workers] == ["RunFailed"] * 2


def test_an_item_that_only_nodes_load_is_quarantined(pool: Pool, tmp_path: Path) -> None:
    server = start(tmp_path, "bad-later", data="local", on_bad_sample="quarantine")
    workers = go(server, pool, "bad-later", 2, local=True)
    report = server.wait()
    assert [worker.hear().get("error") for worker in workers] == [None, None]
    assert report.samples_applied == 2 * 47
    with Ledger(next(tmp_path.glob("run-*/journal.sqlite"))) as ledger:
        assert ledger.quarantined() == {30}
        assert ledger.audit() == []
        assert ledger.samples_applied() == 2 * 47


def test_a_node_whose_copy_of_the_data_is_broken_is_sent_away(pool: Pool, tmp_path: Path) -> None:
    server = start(tmp_path, "regression", data="local")
    broken, good = pool.take(2)
    broken.tell(job="regression", port=server.address[1], local=True, copy_of="bad-later")
    wait_for_nodes(server, 1)
    pool_jobs.GATE.set()
    told = broken.hear()
    assert told["error"] == "Refused"
    assert "its copy of the data is not the run's" in told["message"]
    assert "dataset[30]" in told["message"]
    good.tell(job="regression", port=server.address[1], local=True)
    assert server.wait().weights_sha256 == alone("regression")
    assert "error" not in good.hear()


def test_a_model_that_cannot_compute_a_row_ends_the_run_and_not_every_node(
    pool: Pool, tmp_path: Path
) -> None:
    server = start(tmp_path, "picky")
    workers = go(server, pool, "picky")
    with pytest.raises(
        RunFailed, match=r"samples \[.*30.*\]\) fails on the coordinator as it did on a node: Val"
    ):
        server.wait()
    assert workers[0].hear()["error"] in ("ValueError", "RunFailed")


def test_a_buffer_that_only_some_leaves_change_is_refused(pool: Pool, tmp_path: Path) -> None:
    # It was neither reset nor sent: the bits depended on who computed what.
    server = start(tmp_path, "notes")
    workers = go(server, pool, "notes")
    with pytest.raises(RunFailed, match="buffer seen was changed by this micro-batch"):
        server.wait()
    workers[0].hear()


def test_a_node_that_fails_alone_takes_nothing_with_it(pool: Pool, tmp_path: Path) -> None:
    server = start(tmp_path, "norm")
    broken, good = pool.take(2)
    broken.tell(job="norm", port=server.address[1], fails_at=6)
    good.tell(job="norm", port=server.address[1])
    wait_for_nodes(server, 2)
    pool_jobs.GATE.set()
    assert broken.hear()["error"] == "ZeroDivisionError"
    report = server.wait()
    assert report.weights_sha256 == alone("norm")
    assert report.samples_applied == 300
    assert "error" not in good.hear()


def take_a_leaf(server: CentralServer) -> tuple[TrainingNode, dict[str, Any]]:
    model, _, _ = pool_jobs.build("linear")
    node = TrainingNode(model, server.address).connect()
    return node, node.get_batch()


def gradients(node: TrainingNode, batch: dict[str, Any]) -> list[torch.Tensor]:
    assert node.model is not None
    loss = torch.nn.functional.cross_entropy(node.model(batch["inputs"]), batch["targets"])
    return list(torch.autograd.grad(loss, list(node.model.parameters())))


def test_two_answers_that_differ_are_settled_by_computing_again(
    pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A late node sends another sum of a leaf that was taken from a node of its class, while the step is open."""
    server = start(tmp_path, "linear", micro_batches=8)
    pool_jobs.GATE.set()
    late, batch = take_a_leaf(server)  # leaf 0
    other, theirs = take_a_leaf(
        server
    )  # leaf 1, answered well; then leaf 2, which keeps the step open for a while
    other.send_gradients(gradients(other, theirs), theirs["batch_id"])
    other.get_batch()
    (worker,) = pool.take(1)
    worker.tell(job="linear", port=server.address[1], slow=0.3)
    granted, engagement = late._leases[batch["batch_id"]], late._require_engagement()
    while engagement.trim_of(granted.lease) is None:  # overdue, computed by the other node, and taken
        threading.Event().wait(0.01)
    wrong = [torch.ones_like(g) for g in gradients(late, batch)]
    with caplog.at_level(logging.WARNING):
        late.send_gradients(wrong, batch["batch_id"])
        late.close()
        other.close()
        report = server.wait()
    assert "error" not in worker.hear()
    assert "computed again: nodes" in caplog.text
    model, dataset, options = pool_jobs.build("linear")
    expected = reference(model, dataset, **{**options, "micro_batches": 8})
    assert report.weights_sha256 == expected.weights_sha256
