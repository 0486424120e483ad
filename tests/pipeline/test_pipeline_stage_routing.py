"""The plan of who sends what to whom, as lists."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from stage_models import Mix, Spec, masked, model_of, skips

from manyhands.pipeline.graph import BATCH, MAIN_INPUT, Edge, Graph, Layer
from manyhands.pipeline.messages import BOSS
from manyhands.pipeline.stage.routing import TARGET, Shared, route, shared_parameters


def test_a_skip_goes_straight_to_each_consumer_and_back_as_a_chain() -> None:
    """Edge "a" of layer 0 is taken by layers 1, 2, 3, 5 and 7; the cut puts 1 and 2 on the second stage."""
    routes = route(skips().graph, (0, 1, 3, 5, 8))
    assert routes[0].values_out["a"] == (1, 2, 3)
    assert [("a" in one.values_in, "a" in one.gradients_in) for one in routes] == [
        (False, True),
        (True, True),
        (True, True),
        (True, False),
    ]
    assert [dict(one.gradients_out).get("a") for one in routes] == [None, 0, 1, 2]


def test_what_comes_with_the_batch_has_no_gradient() -> None:
    routes = route(masked().graph, (0, 1, 3, 4, 6))
    assert ["mask" in one.values_in for one in routes] == [True, True, False, True]
    assert ["columns" in one.values_in for one in routes] == [False, False, True, False]
    for one in routes:
        assert not {MAIN_INPUT, "mask", "columns"} & {name for name, _ in one.gradients_out}


def test_the_loss_is_the_last_consumer() -> None:
    on_stage, at_boss = (route(skips().graph, (0, 4, 8), loss_at_boss=at) for at in (False, True))
    assert [one.has_loss for one in on_stage] == [False, True]
    assert TARGET in on_stage[1].values_in
    assert "h" not in on_stage[1].values_out
    assert "h" not in on_stage[1].gradients_in
    assert not any(one.has_loss or TARGET in one.values_in for one in at_boss)
    assert at_boss[1].values_out["h"] == (BOSS,)
    assert "h" in at_boss[1].gradients_in


def test_a_prediction_that_layers_take_too() -> None:
    """The loss is then taken behind them, so that its gradient is the first of all."""
    model = model_of(
        [Spec(Mix(), (MAIN_INPUT,), ("a",)), Spec(Mix(), ("a",), ("b",)), Spec(Mix(), ("b",), ("c",))]
    )
    graph = Graph(model.graph.layers, model.graph.edges, "a")
    first, second, last = route(graph, (0, 1, 2, 3))
    assert [one.has_loss for one in (first, second, last)] == [False, True, False]
    assert first.values_out["a"] == (1,)
    assert second.gradients_out == (("a", 0),)
    assert last.gradients_out == (("b", 1),)


def test_shared_parameters() -> None:
    graph = Graph((), (), "", ties=(("table.weight", "head.weight"),))
    names = [["table.weight"], ["body.weight", "both.weight"], ["both.weight"], ["head.weight", "head.bias"]]
    shared = shared_parameters(graph, names)
    assert shared == (
        Shared("table.weight", ("head.weight",), (0, 3)),
        Shared("both.weight", (), (1, 2)),
    )


def test_a_shared_parameter_is_a_chain_to_its_owner() -> None:
    shared = [Shared("w", (), (1, 3, 4, 7))]
    routes = route(skips().graph, (0, 1, 3, 5, 8), shared)
    assert [one.ties_in for one in routes] == [(), ("w",), ("w",), ()]
    assert [one.ties_out for one in routes] == [(), (), (("w", 1),), (("w", 2),)]
    assert [one.weights_in for one in routes] == [(), (), ("w",), ("w",)]
    assert routes[1].weights_out == {"w": (2, 3)}


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Graph, tuple[int, ...]]:
    """A chain with any skips, cut anywhere."""
    num_layers = draw(st.integers(1, 8))
    layers, consumers = [], {MAIN_INPUT: [0], **{str(at): [] for at in range(num_layers)}}
    for at in range(num_layers):
        inputs = [str(at - 1) if at else MAIN_INPUT]
        inputs += draw(st.lists(st.sampled_from([MAIN_INPUT, *map(str, range(at))]), max_size=2))
        layers.append(Layer(at, str(at), tuple(inputs), (str(at),)))
        for name in inputs[1:] if at == 0 else inputs:
            consumers[name].append(at)
    edges = tuple(
        Edge(
            name, BATCH if name == MAIN_INPUT else int(name), tuple(taken), (), "float32", name != MAIN_INPUT
        )
        for name, taken in consumers.items()
    )
    inner = draw(st.sets(st.integers(1, num_layers - 1))) if num_layers > 1 else set()
    return Graph(tuple(layers), edges, str(num_layers - 1)), (0, *sorted(inner), num_layers)


@settings(max_examples=40, deadline=None)
@given(graphs(), st.booleans())
def test_everything_sent_is_taken(case: tuple[Graph, tuple[int, ...]], loss_at_boss: bool) -> None:
    graph, bounds = case
    routes = route(graph, bounds, loss_at_boss=loss_at_boss)
    made = {edge.name for edge in graph.edges if edge.producer != BATCH}
    sent_values = {(name, to) for one in routes for name, stages in one.values_out.items() for to in stages}
    taken_values = {(name, one.stage) for one in routes for name in one.values_in if name in made}
    at_boss = {(graph.prediction, BOSS)} if loss_at_boss else set()
    assert sent_values == taken_values | at_boss
    sent = [(name, to) for one in routes for name, to in one.gradients_out]
    assert all(to < one.stage for one in routes for _, to in one.gradients_out)
    from_boss = [(graph.prediction, len(routes) - 1)] if loss_at_boss else []
    assert sorted(sent + from_boss) == sorted(
        (name, one.stage) for one in routes for name in one.gradients_in
    )
