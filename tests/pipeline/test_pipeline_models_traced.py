"""Modules read by tracing: what their layers compute, what the edges are, and what cannot be traced."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from pipeline_samples import GPT, Recurrent, Residual, built, prediction
from torch import Tensor, nn

from manyhands.errors import UsageError
from manyhands.pipeline.graph import BATCH, MAIN_INPUT
from manyhands.pipeline.models import Example, Reading, needs_example, read
from manyhands.pipeline.recipes import decode, encode

CASES = {
    "sequential": (
        lambda: nn.Sequential(
            nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Sequential(nn.Dropout(), nn.Linear(8, 2))
        ),
        lambda rows: (torch.randn(rows, 4), {}),
    ),
    "residual": (
        Residual,
        lambda rows: (torch.randn(rows, 3, 4, 4), {"mask": torch.rand(rows, 4, 4, 4) > 0.7}),
    ),
    "residual with noise": (
        Residual,
        lambda rows: (
            torch.randn(rows, 3, 4, 4),
            {"mask": torch.rand(rows, 4, 4, 4) > 0.7, "noise": torch.randn(rows, 4, 4, 4)},
        ),
    ),
    "gpt": (GPT, lambda rows: (torch.randint(0, 20, (rows, 9)), {})),
    "recurrent": (Recurrent, lambda rows: (torch.randn(rows, 6, 4), {})),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        lambda rows: (torch.randn(rows, 5, 8), {}),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_compute_what_the_module_does(name: str) -> None:
    build_model, batch = CASES[name]
    torch.manual_seed(0)
    model = build_model()
    reading = read(model, Example(*batch(4)))
    layers = built(reading)
    x, extra = batch(7)  # another size than it was read by
    for training in (True, False):
        for module in (model, *layers):
            module.train(training)
        torch.manual_seed(1)
        wanted = model(x.clone(), **extra)
        torch.manual_seed(1)
        found = prediction(reading, layers, x, extra)
        assert torch.equal(found, wanted)
        if training:
            found.square().mean().backward()
            wanted.square().mean().backward()
    _check_gradients(model, layers)
    mine = {name: tensor for layer in layers for name, tensor in layer.named_buffers()}
    assert all(torch.equal(mine[name], tensor) for name, tensor in model.named_buffers() if name in mine)


def _check_gradients(model: nn.Module, layers: list[nn.Module]) -> None:
    named = dict(model.named_parameters(remove_duplicate=False))
    totals: dict[int, Tensor] = {}
    for layer in layers:
        for name, parameter in layer.named_parameters():
            key = id(named[name])
            totals[key] = parameter.grad if key not in totals else totals[key] + parameter.grad
    for parameter in model.parameters():
        torch.testing.assert_close(totals[id(parameter)], parameter.grad)


def test_a_block_is_cut_at_its_layers() -> None:
    batch = CASES["residual"][1](4)
    graph = read(Residual(), Example(*batch)).graph
    assert [layer.name for layer in graph.layers] == [
        "conv1",
        "norm1",
        "relu",
        "conv2",
        "norm2",
        "relu",
        "head",
    ]
    assert graph.layers[4].inputs == ("conv2", "relu")
    assert graph.edge("relu").consumers == (3, 4)
    mask = graph.edge("mask")
    assert (mask.producer, mask.consumers, mask.dtype, mask.has_gradient) == (BATCH, (5,), "bool", False)
    assert graph.prediction == "head"
    assert not graph.edge(MAIN_INPUT).has_gradient


def test_a_parameter_used_directly_has_its_name() -> None:
    batch = CASES["residual"][1](4)
    layers = built(read(Residual(), Example(*batch)))
    assert [name for name, _ in layers[5].named_parameters()] == ["scale"]


@pytest.fixture(scope="module")
def gpt() -> Reading:
    return read(GPT(), Example(torch.randint(0, 20, (4, 9))))


def test_tied_weights_are_told(gpt: Reading) -> None:
    graph = gpt.graph
    assert graph.ties == (("wte.weight", "head.weight"),)
    positions = graph.edge("arange")
    assert (positions.batched, positions.has_gradient, positions.sizes(5)) == (False, False, (9,))


def test_repeated_blocks_are_the_same_bytes_but_for_names(gpt: Reading) -> None:
    names = [layer.name for layer in gpt.graph.layers]
    first, second = (
        decode(encode(gpt.recipes[names.index(f"blocks.{at}.qkv")])).parts[1].program for at in range(2)
    )
    assert first != second
    assert first.replace(b"blocks.0", b"blocks.1") == second


def test_a_module_called_twice_is_two_layers_with_one_name() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x).relu())

    reading = read(Twice(), Example(torch.randn(2, 3)))
    assert [[name for name, _ in layer.named_parameters()] for layer in built(reading)] == [
        ["fc.weight", "fc.bias"]
    ] * 2


def test_frozen_parameters_stay_frozen() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    reading = read(model, Example(torch.zeros(4, dtype=torch.int64)))
    assert [parameter.requires_grad for layer in built(reading) for parameter in layer.parameters()] == [
        False,
        True,
        True,
    ]
    assert not reading.graph.edge(reading.graph.layers[0].outputs[0]).has_gradient


def test_a_module_is_left_as_it_was() -> None:
    model = Residual().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(2)
    state = torch.get_rng_state()
    read(model, Example(*CASES["residual"][1](4)))
    torch.manual_seed(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(part.training for part in model.modules())
    assert model.relu.inplace


def test_a_module_on_meta_is_read_without_weights() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2), nn.BatchNorm1d(2))
    reading = read(model, Example(torch.zeros(4, 2, dtype=torch.int64)))
    assert all(tensor.is_meta for tensor in model.parameters())
    assert not any(reading.weights_of(index) for index in range(4))
    assert [name for name, _ in built(reading)[2].named_parameters()] == ["2.weight", "2.bias"]


def test_live_weights_are_not_copied() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    weights = read(model, Example(torch.randn(2, 3))).weights_of(0)
    assert weights["0.weight"].data_ptr() == model[0].weight.data_ptr()


def test_a_state_with_the_batch_second_has_its_size() -> None:
    graph = read(Recurrent(), Example(torch.randn(4, 6, 4))).graph
    hidden = graph.edge(graph.layers[0].outputs[1])
    assert (hidden.sizes(5), hidden.bytes_per_sample) == ((1, 5, 6), 24)


# ---- what cannot be read -------------------------------------------------------------------------------


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)


class Branch(Pair):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y) if y.sum() > 0 else y


class View(Pair):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y.view(-1).add_(1)
        return self.b(y)


class Numpy(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * float(np.random.rand()))


class Random(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * random.random())


class Two(Pair):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


class FixedBatch(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.view(5, -1)))


class Modes(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) if self.training else self.a(x)


class Unsafe(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.linalg.inv(self.a(x)))


class TwoNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(self.norm(x)))


class Masked(Pair):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.b(self.a(x) * mask)


class Whole(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)).sum()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            Branch,
            r"Branch cannot be traced at .*test_pipeline_models_traced.py:\d+ \(`return self.b\(y\) if.*layer list",
        ),
        (View, "do not compute what View does in train mode"),
        (Numpy, "do not compute what Numpy does"),
        (Random, "do not compute what Random does"),
        (Two, "forward of Two returns 2 tensors in a tuple"),
        (FixedBatch, r"FixedBatch cannot take this batch at .*x.view\(5, -1\)"),
        (Modes, "Modes calls other layers or operators in eval mode"),
        (Unsafe, r"Unsafe cannot .*torch.linalg.inv"),
        (TwoNorms, "norm is called twice, as layers 0 and 2, and has buffers"),
        (Masked, "takes 'mask', and the batch does not bring it"),
        (Whole, r"what Whole returns is \(\) for 2 samples"),
    ],
)
def test_what_cannot_be_read_is_told(model: type[nn.Module], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(model(), Example(torch.randn(5, 4)))


def test_an_unknown_extra_is_told() -> None:
    with pytest.raises(UsageError, match="the batch brings 'musk', and forward of Masked takes mask"):
        read(Masked(), Example(torch.randn(5, 4), {"musk": torch.ones(5, 4)}))


def test_shapes_that_do_not_chain_are_told() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(7, 2))
    with pytest.raises(UsageError, match=r"Sequential cannot take this batch in layer 1: .*8.* X .*7, 2"):
        read(model, Example(torch.randn(5, 4)))


def test_a_part_in_another_mode_is_told() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].eval()
    with pytest.raises(UsageError, match=r"1 is in eval mode and Sequential in train mode"):
        read(model, Example(torch.randn(5, 4)))


def test_a_hook_is_told() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(UsageError, match=r"0 \(Linear\) has a hook"):
        read(model, Example(torch.randn(5, 4)))


def test_a_module_without_a_batch_is_told() -> None:
    assert needs_example(nn.Sequential())
    with pytest.raises(UsageError, match="a module says no shapes"):
        read(nn.Sequential(nn.Linear(2, 2)))
