"""Replicas and several stages a worker, as decisions: who holds what, who runs which micro-batch, what is summed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_pipeline_worker_placement import chain, runs_through
from torch import nn

from manyhands import UsageError
from manyhands.pipeline import messages as m
from manyhands.pipeline.cutting import cut
from manyhands.pipeline.models import Example, read
from manyhands.pipeline.orders import orders
from manyhands.pipeline.outcome import Outcome
from manyhands.pipeline.placement import Placement
from manyhands.pipeline.placing import Stock
from manyhands.pipeline.replicas import summed
from manyhands.pipeline.stage.micro_batches import parts, share
from manyhands.pipeline.stagecosts import Cost

TWO = Placement(chain(9, ((1, 7),)), (0, 3, 7, 9), (4, 0, 2, 5, 6, 1))


def test_a_replica_is_a_pipeline_and_knows_its_twin():
    assert (TWO.num_stages, TWO.num_replicas) == (3, 2)
    assert [TWO.replica_of(stage) for stage in range(6)] == [0, 0, 0, 1, 1, 1]
    assert list(TWO.layers_of(4)) == [3, 4, 5, 6]
    assert list(TWO.same_stages(4)) == [1, 4]
    within = [(0, 2), (0, 4), (2, 4), (1, 5), (1, 6), (5, 6)]
    assert TWO.pairs() == sorted([*within, (4, 5), (0, 6), (1, 2)])
    assert TWO.batch_edges_of(5) == ["input"]
    assert TWO.batch_edges_of(6) == []


def test_micro_batches_are_dealt_out_evenly():
    assert TWO.shares(5) == [range(3), range(3, 5)]
    assert TWO.shares(1) == [range(1), range(1, 1)]
    assert TWO.span_of(6, 5) == range(3, 5)
    assert len(TWO.span_of(6, 1)) == 0
    after_a_loss = Placement(TWO.graph, TWO.bounds, (4, 0, 0, 0, 6, 1))
    assert after_a_loss.span_of(0, 5) == range(5)
    assert after_a_loss.layers_held_by(0) == [0, 1, 2, 3, 4, 5, 6, 7, 8]


@given(
    st.sampled_from(["naive", "gpipe", "1f1b", "zero_bubble", "interleaved"]),
    st.integers(1, 7),
    st.integers(1, 3),
    st.lists(st.integers(0, 3), min_size=12, max_size=12),
)
def test_any_owners_can_run_any_schedule_of_replicas(name, micro_batches, replicas, owners):
    """Each micro-batch passes each stage of one replica, and nobody waits for ever."""
    graph = chain(4, ((0, 3),))
    placement = Placement(graph, tuple(range(5)), tuple(owners[: 4 * replicas]), 2)
    order = orders(placement, "train", name, micro_batches)
    forwards = [
        (one.stage % 4, one.micro_batch) for own in order.values() for one in own if one.kind == "forward"
    ]
    assert sorted(forwards) == [(stage, at) for stage in range(4) for at in range(micro_batches)]
    assert all(placement.owners[one.stage] == member for member, own in order.items() for one in own)
    for replica in range(replicas):
        one_replica: Any = {
            member: [
                type(one)(one.kind, one.stage % 4, one.micro_batch)
                for one in own
                if one.stage // 4 == replica
            ]
            for member, own in order.items()
        }
        assert runs_through(one_replica, placement)


@given(st.integers(1, 30), st.data())
def test_a_share_is_parted_as_the_whole_is(rows, data):
    whole = torch.arange(rows)
    num = data.draw(st.integers(1, rows))
    start = data.draw(st.integers(0, num - 1))
    stop = data.draw(st.integers(start + 1, num))
    own = parts(share(whole, num, range(start, stop)), stop - start)
    assert [one.tolist() for one in own] == [one.tolist() for one in parts(whole, num)[start:stop]]


def test_sums_are_in_the_order_of_the_replicas():
    big, small = torch.tensor([1e8]), torch.tensor([1.0])
    total = summed([{"a": big, "b": small}, {"a": -big}, {"a": small}])
    assert total["a"].item() == 1.0
    assert total["b"] is small


def members(num: int, memory: int = 1 << 30) -> list[Any]:
    hello = SimpleNamespace(memory_bytes=memory)
    return [SimpleNamespace(number=at, title=f"worker {at}", hello=hello) for at in range(num)]


def costs(num_layers: int, num_machines: int, weight_bytes: int = 0) -> list[Cost]:
    return [Cost((1.0,) * num_machines, weight_bytes, weight_bytes, 0, 0) for _ in range(num_layers)]


def test_workers_are_dealt_to_replicas_and_stages():
    two = cut(chain(8), costs(8, 4), members(4), None, replicas=2)
    assert (two.bounds, two.owners) == ((0, 4, 8), (0, 1, 2, 3))
    several = cut(chain(8), costs(8, 2), members(2), None, stages_per_worker=2)
    assert (several.bounds, several.owners) == ((0, 2, 4, 6, 8), (0, 1, 0, 1))
    by_cuts = cut(chain(8), costs(8, 2), members(2), [1, 2, 3])
    assert (by_cuts.owners, by_cuts.stages_per_worker) == ((0, 1, 0, 1), 2)


def test_a_slow_worker_gets_fewer_layers_and_a_replica_waits_for_its_slowest():
    slow_second = [Cost((1.0, 3.0), 0, 0, 0, 0) for _ in range(8)]
    assert cut(chain(8), slow_second, members(2), None).bounds == (0, 6, 8)
    slow_in_one = [Cost((1.0, 1.0, 1.0, 3.0), 0, 0, 0, 0) for _ in range(8)]
    assert cut(chain(8), slow_in_one, members(4), None, replicas=2).bounds == (0, 6, 8)


def test_too_little_memory_is_told_with_a_table():
    with pytest.raises(
        UsageError, match=r"(?s)no cut of this model fits.*worker 1 .*too little memory.*Add a worker"
    ):
        cut(chain(8), costs(8, 2, weight_bytes=1 << 20), members(2, memory=8 << 20), None)


def test_losses_add_up_in_the_order_of_stages_and_idle_time_needs_no_common_clock():
    outcome = Outcome(
        {
            7: {"loss 5": 0.25, "busy": 3.0, "span": 8.0},
            3: {"loss 2": 0.5, "busy": 5.0, "span": 10.0},
            4: {"busy": 0.0, "span": 1.0},
        }
    )
    assert outcome.loss() == 0.75
    assert outcome.idle_share() == pytest.approx(1 - 8.0 / 30.0)
    assert Outcome({1: {}}).loss() is None


def test_a_module_that_its_user_goes_on_with_does_not_change_what_the_run_began_with():
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    stock = Stock(read(module, Example(torch.randn(4, 2), {})), m.Settings(0, 1))
    placement = Placement(stock.graph, (0, 1, len(stock.graph.layers)), (0, 1))

    def sent() -> list[torch.Tensor]:
        bodies = [tree for own in stock.parcels(placement, 1, 2).values() for _, tree in own if tree]
        return [one.clone() for tree in bodies for one in tree.get("parameters", {}).values()]

    before = sent()
    with torch.no_grad():
        module[0].weight.zero_()
    assert len(before) == 4
    assert all(torch.equal(one, other) for one, other in zip(before, sent(), strict=True))
