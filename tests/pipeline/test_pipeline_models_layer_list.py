"""Layer lists: the seed's examples, classes of the user's own, and what is wrong with the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pipeline_samples import GATED, RESIDUAL, Gated, built, prediction
from torch import Tensor, nn

from manyhands.errors import UsageError
from manyhands.pipeline.graph import BATCH, MAIN_INPUT
from manyhands.pipeline.models import check_extras, needs_example, read
from manyhands.pipeline.wrapped import wrapped_linear


def test_the_residual_example_is_a_graph() -> None:
    graph = read(RESIDUAL).graph
    assert [layer.name for layer in graph.layers] == [str(at) for at in range(8)]
    skip = graph.edge("res_1")
    assert (skip.producer, skip.consumers, skip.shape) == (2, (3, 5), (16,))
    assert graph.layers[5].inputs == ("4", "res_1")
    assert graph.edge(MAIN_INPUT).producer == BATCH
    assert not graph.edge(MAIN_INPUT).has_gradient
    assert graph.prediction == "7"
    assert not needs_example(RESIDUAL)


def test_the_residual_example_computes_what_it_says() -> None:
    reading = read(RESIDUAL)
    layers = built(reading)
    x = torch.randn(5, 1)
    weights = {name: tensor for layer in layers for name, tensor in layer.named_parameters()}

    def linear(at: int, given: Tensor) -> Tensor:
        return nn.functional.linear(given, weights[f"{at}.weight"], weights[f"{at}.bias"])

    skip = linear(2, linear(0, x).relu())
    wanted = linear(6, linear(5, linear(4, skip.relu())) + skip).sigmoid()
    assert torch.equal(prediction(reading, layers, x), wanted)


def test_torch_layers_start_where_they_are_built() -> None:
    reading = read(RESIDUAL)
    assert all(not reading.weights_of(index) for index in range(8))


def test_a_class_of_ones_own_travels() -> None:
    reading = read(GATED)
    graph = reading.graph
    assert graph.layers[2].inputs == ("1", "words", "mask")
    # The layer's main output and the name "same" are one tensor, hence one edge.
    assert graph.layers[2].outputs == ("same", "twice")
    assert graph.layers[3].inputs == ("same", "same", "twice", "words")
    assert graph.edge("same").consumers == (3, 3)
    mask = graph.edge("mask")
    assert (mask.producer, mask.dtype, mask.has_gradient, mask.shape) == (BATCH, "bool", False, (8,))
    names = [name for name, _ in built(reading)[2].named_parameters()]
    assert names == ["2.fc.weight", "2.fc.bias", "2.norm.weight", "2.norm.bias"]


@pytest.mark.parametrize("training", [True, False])
def test_a_class_of_ones_own_computes_what_it_does(training: bool) -> None:
    reading = read(GATED)
    layer = built(reading)[2].train(training)
    own = Gated(8).train(training)
    own.load_state_dict({name.removeprefix("2."): tensor for name, tensor in reading.weights_of(2).items()})
    x, skip, mask = torch.randn(7, 8, requires_grad=True), torch.randn(7, 8), torch.rand(7, 8) > 0.5
    results, gradients = [], []
    for module in (own, layer):
        torch.manual_seed(5)
        out = module(x, skip, mask)[0]
        results.append(out)
        gradients.append(torch.autograd.grad(out.square().sum(), (x, *module.parameters())))
    assert torch.equal(*results)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(own.buffers(), layer.buffers(), strict=True))


def test_first_weights_of_ones_own_class_repeat() -> None:
    torch.manual_seed(3)
    reading = read(GATED)
    first, second = reading.weights_of(2), reading.weights_of(2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(3)
    again = read(GATED).weights_of(2)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_tensors_without_the_batch_come_whole() -> None:
    class Add(nn.Module):
        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            return x + table

    graph = read([(Add, {"in_variables": ["table"]}, [(32, 4, 8), (4, 8)])]).graph
    table = graph.edge("table")
    assert (table.batched, table.shape, table.sizes(3)) == (False, (4, 8), (4, 8))
    assert graph.edge(MAIN_INPUT).sizes(3) == (3, 4, 8)


def test_wrapped_linear_by_itself() -> None:
    layer = wrapped_linear(3, 4, ["a", "b"], ["c"])
    x, a, b = torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 4)
    out, published = layer(x, a, b)
    assert torch.equal(out, nn.functional.linear(x, layer.weight, layer.bias) + a + b)
    assert published["c"] is out
    assert torch.equal(wrapped_linear(3, 4)(x).new_zeros(1), torch.zeros(1))


# ---- what is wrong ------------------------------------------------------------------------------------


def linear(taken: int, given: int, shape: Any, **names: Any) -> tuple[Any, dict[str, Any], Any]:
    return (wrapped_linear, {"in_features": taken, "out_features": given, **names}, shape)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Silent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Broken(nn.Module):
    def __init__(self) -> None:
        raise RuntimeError("no licence")


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (
            [linear(3, 4, (2, 3)), linear(5, 4, (2, 5))],
            r"layer 1 .* declares \(2, 5\).*layer 0 .* gives float32 \(batch, 4\)",
        ),
        (
            [linear(3, 4, (2, 3)), linear(5, 4, (2, 4))],
            r"layer 1 \(wrapped_linear\) cannot take float32 \(batch, 4\)",
        ),
        ([(nn.Embedding, {"num_embeddings": 3, "embedding_dim": 4}, (2,))], "layer 0 .*cannot take float32"),
        ([linear(3, 3, (2, 3), dependencies=["q"])], "consumes 'q', which no layer before it produces"),
        (
            [linear(3, 3, (2, 3), out_variables=["q"]), linear(3, 3, (2, 3), out_variables=["q"])],
            r"'q' is produced by layer 0 \(wrapped_linear\) and by layer 1",
        ),
        (
            [linear(3, 3, [(2, 3), (2, 3)], dependencies=["q"]), linear(3, 3, (2, 3), out_variables=["q"])],
            r"layer 0 .* consumes 'q', which layer 1 \(wrapped_linear\) produces only after it",
        ),
        ([linear(3, 3, (2, 3), out_variables=["q", "q"])], "names one twice"),
        ([linear(3, 3, (2, 3), out_variables=["input"])], "a name that the pipeline uses"),
        ([linear(3, 3, (2, 3), dependencies="q")], "must be a list of names"),
        (
            [linear(3, 4, (2, 3), out_variables=["q"]), linear(4, 4, [(2, 4), (2, 5)], dependencies=["q"])],
            r"layer 1 .* declares \(2, 5\) for 'q', and layer 0",
        ),
        ([linear(3, 3, [(2, 3), (2, 3)])], "has 2 shapes and takes 1 inputs"),
        (
            [(nn.Linear, {"in_feature": 3}, (2, 3))],
            "in_feature=3, which it does not take; it takes in_features",
        ),
        ([(nn.Linear, {"in_features": 3}, (2, 3))], "layer 0 .*cannot be built"),
        (
            [(nn.Linear, {"in_features": object(), "out_features": 3}, (2, 3))],
            "is a object, which cannot travel",
        ),
        ([(nn.Linear, {"in_features": 3, "out_features": 3})], "a layer is \\(class, kwargs, shape\\)"),
        ([(nn.Linear(3, 3), {}, (2, 3))], "a layer is a class of nn.Module"),
        ([(nn.ReLU, {}, (2, "3"))], "a shape is a tuple of sizes"),
        ([(nn.ReLU, {}, (2, -1))], "only the first size"),
        (
            [
                linear(3, 3, (2, 3), out_variables=["q"]),
                (nn.ReLU, {"inplace": True}, (2, 3)),
                linear(3, 3, [(2, 3), (2, 3)], dependencies=["q"]),
            ],
            r"layer 1 \(ReLU\) works in place on 'q', which layers \[1, 2\] take",
        ),
        (
            [(Branch, {}, (2, 3))],
            r"layer 0 \(Branch\) cannot travel as data: the model decides by the values.*return x if",
        ),
        ([(Silent, {"out_variables": ["q"]}, (2, 3))], "'q' is missing"),
        ([(Broken, {}, (2, 3))], "layer 0 .Broken. cannot be built with {}: no licence"),
        ([], "a model is a list of layers"),
        ("model.py", "a model is a list of layers"),
    ],
)
def test_what_is_wrong_is_told(layers: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(layers)


def test_a_batch_without_an_extra_is_told() -> None:
    graph = read(GATED).graph
    check_extras(graph, {"mask": torch.zeros(1)})
    with pytest.raises(UsageError, match=r"layer 2 \(2\) takes 'mask', which no layer before it makes"):
        check_extras(graph, {})
    with pytest.raises(UsageError, match="brings 'musk', which no layer takes; they take mask"):
        check_extras(graph, {"mask": torch.zeros(1), "musk": torch.zeros(1)})
