"""compression="int8": a quarter of the bytes, and the bits of one process that rounds alike, whoever computed what."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pool_jobs
import pytest
import torch
from hand_node import HandNode
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_nodes import Pool, wait_for_nodes
from test_bits import train
from test_sums_and_lane import LAYOUT, MODEL, deliveries, leaves_of, recursion

from manyhands.errors import ManyhandsError, UsageError
from manyhands.fleet import messages as m
from manyhands.fleet import tree
from manyhands.pool.compression import Compression
from manyhands.pool.node import TrainingNode
from manyhands.pool.server import CentralServer
from manyhands.pool.sums import StepSum
from manyhands.store import checkpoint
from manyhands.training.gradients import Partial, collect
from manyhands.training.moving import MovingState
from manyhands.training.packing import SumPacking
from manyhands.training.reference import reference
from manyhands.training.rounded import Rounded
from manyhands.training.state import ModelState


def alone(job: str, compression: str | None = "int8") -> str:
    model, dataset, options = pool_jobs.build(job)
    pool_jobs.GATE.set()
    return reference(model, dataset, compression=compression, **options).weights_sha256


def serve(folder: Path, job: str, **more: Any) -> CentralServer:
    """A started server, its feeder at the gate."""
    pool_jobs.GATE.clear()
    model, dataset, options = pool_jobs.build(job)
    server = CentralServer(model, dataset, port=0, checkpoint_dir=folder, **{**options, **more})
    server.start(block=False)
    return server


@settings(deadline=None, max_examples=60)
@given(deliveries(), st.integers(0, 40), st.integers(0, 1000))
def test_any_order_and_shape_of_subtrees_gives_the_references_bits(
    given: tuple[int, list[int]], more_leaves: int, seed: int
) -> None:
    count, order = given
    micro_batches, depth, values = count + more_leaves, tree.depth_of(count), leaves_of(count, seed)
    state = ModelState(MODEL)
    compression = Compression(LAYOUT, MovingState(state, {}), seed, micro_batches)
    level = compression.unit_level(count)
    sums, node, packing = StepSum(LAYOUT), StepSum(LAYOUT), SumPacking(LAYOUT, seed)
    sums.open(count, level, compression.settle(9))
    for subtree in tree.lowered(tuple(order), level, depth, count):
        node.open(count, level)
        for leaf in tree.span(subtree, depth):
            if leaf < count:
                part = collect(LAYOUT, values[leaf], 1.0, {}, node.buffer())
                node.take(tree.leaf_number(leaf, depth), part)
        holder = node.holder(subtree)
        assert holder is not None
        part, mine = node.pop(holder), sums.buffer()
        is_unit = tree.level_of(holder) == level
        if is_unit:
            packing.pack(part, 9, holder - (1 << level))
            packing.unpack(mine.body)
        else:
            mine.body.copy_(part.buffer.body)
        sums.take(holder, Partial(mine, part.present), is_settled=is_unit)
    root = sums.pop()
    for index, value in enumerate(Rounded(state, seed, micro_batches).sum(values, 9, recursion)):
        assert bool(root.present >> index & 1) == (value is not None)
        if value is not None:
            assert root.buffer.views[index].numpy().tobytes() == value.numpy().tobytes()


@pytest.mark.parametrize("nodes", [1, 2, 3, 5])
def test_any_number_of_nodes_gives_the_same_bits(pool: Pool, tmp_path: Path, nodes: int) -> None:
    report, said = train(pool, tmp_path, "norm", nodes, compression="int8")
    assert [told.get("error") for told in said] == [None] * nodes
    assert report.weights_sha256 == alone("norm") != alone("norm", None)
    assert report.bit_exact
    assert report.samples_applied == report.samples_expected == 300


@pytest.mark.parametrize(
    ("job", "nodes"), [("tokens", 2), ("branches", 3), ("bf16-model", 2), ("fp16", 2), ("wide", 3)]
)
def test_any_job_gives_the_bits_of_one_process(pool: Pool, tmp_path: Path, job: str, nodes: int) -> None:
    report, said = train(pool, tmp_path, job, nodes, compression="int8")
    assert [told.get("error") for told in said] == [None] * nodes
    assert report.weights_sha256 == alone(job)


def test_audited_sums_are_units(pool: Pool, tmp_path: Path) -> None:
    # A lease of two units was audited as one sum, which no node sends.
    report, said = train(pool, tmp_path, "norm", 2, compression="int8", verify=1.0)
    assert [told.get("error") for told in said] == [None, None]
    assert report.weights_sha256 == alone("norm")
    assert report.refused == 0


def test_a_loop_of_the_callers_own_gives_the_same_bits(pool: Pool, tmp_path: Path) -> None:
    report, said = train(pool, tmp_path, "linear", 2, {"by_hand": True}, compression="int8")
    assert [told.get("error") for told in said] == [None, None]
    assert report.weights_sha256 == alone("linear")


def test_a_resumed_run_ends_with_the_same_bits(pool: Pool, tmp_path: Path) -> None:
    # What rounding left behind is in the checkpoint; without it the next change would be another.
    assert train(pool, tmp_path, "wide", 2, compression="int8", max_steps=3)[0].steps == 3
    found = checkpoint.newest(tmp_path)
    assert found is not None
    saved = checkpoint.load(found)
    told = saved.optimizer["sent"]
    assert not torch.equal(told["2.weight"], saved.tensors["2.weight"])
    # The run's own choice stands where the script names none.
    report, _ = train(pool, tmp_path, "wide", 2, resume=True)
    assert report.weights_sha256 == alone("wide")


def test_a_run_in_fp32_is_not_resumed_in_int8(pool: Pool, tmp_path: Path) -> None:
    train(pool, tmp_path, "linear", 1, max_steps=2)
    with pytest.raises(UsageError, match="saved with compression=None and is resumed with 'int8'"):
        serve(tmp_path, "linear", compression="int8", resume=True)


# ---- a node asks ----


def test_a_node_that_asks_before_the_first_step_gets_int8(pool: Pool, tmp_path: Path) -> None:
    report, said = train(pool, tmp_path, "norm", 2, {"compress": True})
    assert [told.get("error") for told in said] == [None, None]
    assert report.weights_sha256 == alone("norm")


def test_a_first_step_under_way_is_computed_again_in_int8(pool: Pool, tmp_path: Path) -> None:
    server = serve(tmp_path, "norm")
    pool_jobs.GATE.set()
    with HandNode(server, pool_jobs.build("norm")[0]) as hand:
        granted = hand.lease()
        assert granted.unit_level is None
        first, *_ = hand.compute(granted)
        (worker,) = pool.take(1)
        worker.tell(job="norm", port=server.address[1], compress=True)
        wait_for_nodes(server, 2)
        assert server._run is not None
        assert server._run.job.master.compression is not None
        hand.deliver(granted, first)  # of the lease in fp32: refused, and the node is not thrown out for it
        again = hand.lease()
        assert (again.step, again.unit_level) == (0, 1)
    assert server.wait().weights_sha256 == alone("norm")
    assert "error" not in worker.hear()


def test_a_node_that_asks_later_is_told_what_the_run_sends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(tmp_path, "linear")
    pool_jobs.GATE.set()
    with HandNode(server, pool_jobs.build("linear")[0]) as hand:
        for _ in range(2):
            granted = hand.lease()
            for ready in hand.compute(granted):
                hand.deliver(granted, ready)
        assert hand.lease().step == 2
    assert server._run is not None
    assert server._run.job.master.compression is None
    caplog.set_level("INFO", "manyhands")
    TrainingNode(pool_jobs.build("linear")[0], server.address, compress_gradients=True).train()
    assert server.wait().weights_sha256 == alone("linear", None)
    assert "this run has computed 2 steps with fp32 gradients" in caplog.text


# ---- bytes ----


def test_a_quarter_of_the_bytes_goes_each_way(pool: Pool, tmp_path: Path) -> None:
    report, said = train(pool, tmp_path, "wide", 1, compression="int8")
    leases: list[dict[str, float]] = said[0]["traffic"]
    whole = 4 * sum(parameter.numel() for parameter in pool_jobs.build("wide")[0].parameters())
    for told in leases:
        assert told["original_size"] == pytest.approx(2 * whole, rel=0.001), "two units"
        assert told["compressed_size"] <= 0.27 * told["original_size"]
        assert told["compressed_size"] < told["sent_bytes"] < 1.01 * told["compressed_size"] + 2000
    assert len(leases) == report.steps
    assert statistics.median(told["received_bytes"] for told in leases) <= 0.27 * whole


# ---- answers that do not fit ----


def test_sums_in_the_wrong_clothes_are_refused(pool: Pool, tmp_path: Path) -> None:
    server = serve(tmp_path, "norm", compression="int8")
    pool_jobs.GATE.set()
    with HandNode(server, pool_jobs.build("norm")[0]) as hand:
        granted = hand.lease()
        unit = hand.compute(granted)[0]
        hand.deliver(granted, unit)  # whole, as fp32
        assert "came as fp32 and travels as int8" in told(hand)
        hand.deliver(granted, unit, subtree=1)
        assert "larger than a unit" in told(hand)
        hand.deliver(granted, unit, subtree=unit.subtree << 1, packed=True)
        assert "came as int8 and travels as fp32" in told(hand)
        hand.deliver(granted, unit, packed=True)
        with pytest.raises(ManyhandsError, match=r"a partial sum of \d+ bytes where this run's have"):
            hand.engagement.next_lease()
    (worker,) = pool.take(1)
    worker.tell(job="norm", port=server.address[1])
    assert server.wait().weights_sha256 == alone("norm")
    assert "error" not in worker.hear()


def told(hand: HandNode) -> str:
    while True:
        item = hand.uplink.next()
        assert isinstance(item, tuple), item
        if isinstance(item[0], m.Told):
            return item[0].text
