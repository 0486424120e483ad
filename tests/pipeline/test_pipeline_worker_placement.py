"""Who holds which stage, and in which order: pure decisions."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyhands import RunFailed, UsageError
from manyhands.pipeline.graph import BATCH, MAIN_INPUT, Edge, Graph, Layer
from manyhands.pipeline.orders import merged
from manyhands.pipeline.placement import Placement, replaced
from manyhands.pipeline.schedules import Operation, schedule_of


def chain(num_layers: int, skips: tuple[tuple[int, int], ...] = ()) -> Graph:
    """Layers in a row; a skip goes from the output of one layer to a later one."""
    edges = [Edge(MAIN_INPUT, BATCH, (0,), (1,), "float32", False)]
    inputs = {layer: [MAIN_INPUT if layer == 0 else str(layer - 1)] for layer in range(num_layers)}
    for layer in range(num_layers):
        more = sorted(taker for maker, taker in skips if maker == layer)
        takers = sorted([*([layer + 1] if layer + 1 < num_layers else []), *more])
        edges.append(Edge(str(layer), layer, tuple(takers), (1,), "float32", True))
        for taker in more:
            inputs[taker].append(str(layer))
    layers = [Layer(at, str(at), tuple(inputs[at]), (str(at),)) for at in range(num_layers)]
    return Graph(tuple(layers), tuple(edges), str(num_layers - 1))


def test_stages_layers_and_pairs():
    placement = Placement(chain(9, ((1, 7),)), (0, 3, 7, 9), (4, 0, 2))
    assert [list(placement.layers_of(stage)) for stage in range(3)] == [[0, 1, 2], [3, 4, 5, 6], [7, 8]]
    assert [placement.stage_of(layer) for layer in (0, 2, 3, 6, 7, 8)] == [0, 0, 1, 1, 2, 2]
    assert placement.members == [4, 0, 2]
    assert placement.pairs() == [(0, 2), (0, 4), (2, 4)]
    assert placement.last_stage == 2
    assert [placement.batch_edges_of(member) for member in (4, 0, 2)] == [[MAIN_INPUT], [], []]


def test_spares_take_whole_workers_and_neighbours_single_stages():
    assert replaced((0, 1, 2), [0, 1, 2]) == (0, 1, 2)
    assert replaced((0, 1, 2), [0, 2, 3]) == (0, 3, 2)
    assert replaced((0, 1, 2), [0, 2]) == (0, 0, 2)
    assert replaced((0, 1, 2), [1, 2]) == (1, 1, 2)
    assert replaced((0, 1, 0, 1), [0, 5, 6]) == (0, 5, 0, 5)
    assert replaced((0, 1, 2), [7]) == (7, 7, 7)
    with pytest.raises(RunFailed):
        replaced((0, 1), [])


@given(
    st.sampled_from(["naive", "gpipe", "1f1b", "zero_bubble"]),
    st.integers(1, 6),
    st.lists(st.integers(0, 2), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), max_size=3),
)
def test_any_owners_can_run_any_schedule(name, micro_batches, owners, skips):
    """Each worker runs its own list in order, and nobody waits for ever: whoever holds which stages."""
    num = len(owners)
    real = tuple({(a, b) for a, b in skips if a + 1 < b < num})
    placement = Placement(chain(num, real), tuple(range(num + 1)), tuple(owners))
    order = merged(schedule_of(name, num, micro_batches), placement)
    wanted = {one for own in schedule_of(name, num, micro_batches) for one in own}
    assert sorted(itertools.chain(*order.values()), key=repr) == sorted(wanted, key=repr)
    assert all(placement.owners[one.stage] == member for member, own in order.items() for one in own)
    assert runs_through(order, placement)


def runs_through(order: dict[int, list[Operation]], placement: Placement) -> bool:
    """Whether workers that each take their list from the front come to its end."""
    left = {member: list(own) for member, own in order.items()}
    done: set[tuple[str, int, int]] = set()
    is_moving = True
    while is_moving:
        is_moving = False
        for own in left.values():
            while own and can_run(own[0], done, placement):
                one = own.pop(0)
                done.add((one.kind.replace("input_", ""), one.stage, one.micro_batch))
                is_moving = True
    return not any(left.values())


def can_run(one: Operation, done: set[tuple[str, int, int]], placement: Placement) -> bool:
    layer, at = one.stage, one.micro_batch  # one layer a stage here
    if one.kind == "weight_backward":
        return ("backward", layer, at) in done
    makers = [
        edge.producer for edge in placement.graph.edges if layer in edge.consumers and edge.producer != BATCH
    ]
    takers = [taker for edge in placement.graph.edges if edge.producer == layer for taker in edge.consumers]
    if one.kind == "forward":
        return all(("forward", maker, at) in done for maker in makers)
    return all(("backward", taker, at) in done for taker in takers)


def test_a_schedule_of_another_kind_is_refused():
    with pytest.raises(UsageError, match="no schedule 'fast'"):
        schedule_of("fast", 2, 2)
