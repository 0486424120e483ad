"""Cuts: the best of all, by trying all; the user's; and what does not fit."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands.errors import UsageError
from manyhands.pipeline.graph import BATCH, MAIN_INPUT, Edge, Graph, Layer
from manyhands.pipeline.plan import Partition, partition
from manyhands.pipeline.stagecosts import Cost, Load, Machine

PLENTY = 1 << 40


def graph_of(num_layers: int, skips: dict[int, tuple[int, ...]] | None = None, width: int = 8) -> Graph:
    """A chain; `skips` are further consumers of a layer's output."""
    skips = {} if skips is None else skips
    layers = tuple(
        Layer(at, str(at), (str(at - 1) if at else MAIN_INPUT,), (str(at),)) for at in range(num_layers)
    )
    main = Edge(MAIN_INPUT, BATCH, (0,), (width,), "float32", has_gradient=False)
    made = (
        Edge(
            str(at),
            at,
            tuple(sorted({*([at + 1] if at + 1 < num_layers else []), *skips.get(at, ())})),
            (width,),
            "float32",
            has_gradient=True,
        )
        for at in range(num_layers)
    )
    return Graph(layers, (main, *made), str(num_layers - 1))


def costs_of(*seconds: float, machines: int, num_bytes: int = 100) -> list[Cost]:
    return [Cost((one,) * machines, num_bytes, num_bytes, 0, 10) for one in seconds]


def load_of(num_stages: int, *, bytes_per_second: float = 1e12, held: int = 1) -> Load:
    return Load(4, (held,) * num_stages, 2, bytes_per_second)


def machines_of(number: int, free_bytes: int = PLENTY) -> list[Machine]:
    return [Machine(f"worker {at}", free_bytes) for at in range(number)]


def test_the_slowest_stage_is_as_fast_as_can_be() -> None:
    cut = partition(graph_of(6), costs_of(1, 1, 1, 1, 1, 5, machines=2), machines_of(2), load_of(2))
    assert cut.cuts == (5,)
    assert cut.seconds == pytest.approx(5)
    assert [stage.layers for stage in cut.stages] == [range(5), range(5, 6)]


def test_a_slow_machine_gets_less() -> None:
    costs = [Cost((1.0, 4.0), 0, 0, 0, 0)] * 5
    assert partition(graph_of(5), costs, machines_of(2), load_of(2)).cuts == (4,)


def test_a_skip_is_counted_where_it_comes_in() -> None:
    # 1024 floats of 4 samples: 16 KiB; over a slow line the wide skip 0 -> 2 should not be cut, if that can be.
    wide = graph_of(4, {0: (2,)}, width=1024)
    even = costs_of(1, 1, 1, 1, machines=2)
    slow = load_of(2, bytes_per_second=32768.0)
    cut = partition(wide, even, machines_of(2), slow)
    moved = {at: partition(wide, even, machines_of(2), slow, cuts=(at,)).stages[1] for at in (1, 2, 3)}
    assert [moved[at].incoming_bytes for at in (1, 2, 3)] == [16384, 32768, 16384]
    assert moved[2].seconds == pytest.approx(2 + 2 * 32768 / 32768.0)  # forward, and back as a gradient
    assert cut.cuts == (3,)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Graph, list[Cost], list[Machine], Load]:
    num_layers = draw(st.integers(1, 7))
    num_machines = draw(st.integers(1, min(4, num_layers)))
    skips = draw(
        st.dictionaries(
            st.integers(0, num_layers - 1), st.lists(st.integers(0, num_layers - 1), max_size=3), max_size=4
        )
    )
    behind = {at: tuple(one for one in taken if one > at) for at, taken in skips.items()}
    number = st.integers(0, 9)
    costs = [
        Cost(
            tuple(float(draw(number)) for _ in range(num_machines)),
            *(draw(number) for _ in range(4)),
        )
        for _ in range(num_layers)
    ]
    machines = [Machine(str(at), draw(st.integers(50, 400))) for at in range(num_machines)]
    held = tuple(draw(st.integers(1, 3)) for _ in range(num_machines))
    return (
        graph_of(num_layers, behind, width=2),
        costs,
        machines,
        Load(1, held, draw(st.integers(0, 2)), 16.0),
    )


@settings(max_examples=200, deadline=None)
@given(cases())
def test_it_is_the_best_of_all_cuts(case: tuple[Graph, list[Cost], list[Machine], Load]) -> None:
    graph, costs, machines, load = case

    def tried(cuts: tuple[int, ...]) -> Partition | None:
        try:
            return partition(graph, costs, machines, load, cuts)
        except UsageError:
            return None

    every = [tried(cuts) for cuts in combinations(range(1, len(costs)), len(machines) - 1)]
    fitting = [one.seconds for one in every if one is not None]
    if fitting:
        assert partition(graph, costs, machines, load).seconds == pytest.approx(min(fitting))
    else:
        with pytest.raises(UsageError, match="too little memory"):
            partition(graph, costs, machines, load)


@given(cases())
@settings(deadline=None)
def test_every_machine_gets_a_layer(case: tuple[Graph, list[Cost], list[Machine], Load]) -> None:
    graph, costs, machines, load = case
    free = [Machine(machine.name, PLENTY) for machine in machines]
    stages = partition(graph, costs, free, load).stages
    assert [layer for stage in stages for layer in stage.layers] == list(range(len(costs)))
    assert all(stage.layers for stage in stages)
    assert [stage.machine for stage in stages] == free


def test_memory_is_weights_gradients_optimizer_and_what_is_held() -> None:
    cost = Cost((1.0,), weight_bytes=100, trained_bytes=80, buffer_bytes=7, activation_bytes=50)
    load = Load(samples=4, held=(3,), optimizer_states=2, bytes_per_second=1.0)
    (stage,) = partition(graph_of(1, width=8), [cost], machines_of(1), load).stages
    incoming = 4 * 8 * 4
    assert stage.needed_bytes == 100 + 7 + 80 * 3 + 3 * (50 + incoming)


def test_too_little_memory_is_told_with_a_table() -> None:
    costs = costs_of(1, 1, 1, machines=2, num_bytes=1 << 20)
    with pytest.raises(UsageError) as caught:
        partition(graph_of(3), costs, [Machine("big", 64 << 20), Machine("small", 1 << 20)], load_of(2))
    text = str(caught.value)
    assert "no cut of this model fits" in text
    (line,) = [line for line in text.splitlines() if "too little memory" in line]
    assert line.split()[:3] == ["1", "small", "2"]
    assert "4.0 MiB" in line
    assert "1.0 MiB" in line
    assert "Add a worker" in text


def test_cuts_that_do_not_fit_are_told_though_others_would() -> None:
    costs = costs_of(1, 1, 1, machines=2, num_bytes=1 << 20)
    machines = [Machine("big", 64 << 20), Machine("small", 5 << 20)]
    assert partition(graph_of(3), costs, machines, load_of(2)).cuts == (2,)
    with pytest.raises(UsageError, match="these cuts do not fit"):
        partition(graph_of(3), costs, machines, load_of(2), cuts=[1])


@pytest.mark.parametrize("cuts", [[], [1, 2], [0], [3], [-1]])
def test_cuts_that_are_none_are_told(cuts: list[int]) -> None:
    with pytest.raises(UsageError, match="1 ascending numbers from 1 to 2 are needed"):
        partition(graph_of(3), costs_of(1, 1, 1, machines=2), machines_of(2), load_of(2), cuts=cuts)


def test_fewer_layers_than_workers_are_told() -> None:
    with pytest.raises(UsageError, match="the model has 2 layers, and there are 3 workers"):
        partition(graph_of(2), costs_of(1, 1, machines=3), machines_of(3), load_of(3))


def test_no_workers_are_told() -> None:
    with pytest.raises(UsageError, match="no workers"):
        partition(graph_of(2), costs_of(1, 1, machines=0), [], load_of(0))
