"""Recipes: layers of torch written down and built again, programs without a loss, and what a stranger may send."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from manyhands.errors import ProgramRefused, UsageError
from manyhands.pipeline.models import Example, read
from manyhands.pipeline.recipes import Recipe, build, decode, encode
from manyhands.pipeline.recipes.catalogue import LAYERS
from manyhands.pipeline.recipes.describe import describe
from manyhands.pipeline.recipes.format import Keyword, Option, ProgramPart, TorchPart, Value
from manyhands.programs.format import MAX_NODES, Dtype
from manyhands.programs.parser import parse
from manyhands.programs.plan import Limits

IMAGE, ROWS, STEPS = (2, 4, 6, 6), (3, 8), (3, 5, 8)

SAMPLES: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(8, 4, bias=False), ROWS),
    (nn.Linear(8, 4, dtype=torch.float64), ROWS),
    (nn.Conv2d(4, 6, (3, 5), stride=2, padding=1, groups=2, padding_mode="circular"), IMAGE),
    (nn.Conv2d(4, 6, 3, padding="same"), IMAGE),
    (nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1), IMAGE),
    (nn.Conv1d(5, 3, 3, dilation=2), STEPS),
    (nn.BatchNorm2d(4, eps=1e-3, momentum=None), IMAGE),
    (nn.BatchNorm1d(8, affine=False, track_running_stats=False), ROWS),
    (nn.InstanceNorm2d(4, affine=True), IMAGE),
    (nn.LayerNorm((6, 6), eps=1e-2, bias=False), IMAGE),
    (nn.GroupNorm(2, 4, affine=False), IMAGE),
    (nn.RMSNorm(8), ROWS),
    (nn.LocalResponseNorm(2, k=2.0), IMAGE),
    (nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), IMAGE),
    (nn.AvgPool2d(2, count_include_pad=False), IMAGE),
    (nn.AdaptiveAvgPool2d((None, 3)), IMAGE),
    (nn.LPPool2d(2.0, 3), IMAGE),
    (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), IMAGE),
    (nn.Upsample(size=(3, 4)), IMAGE),
    (nn.PixelShuffle(2), IMAGE),
    (nn.Unfold(2, stride=2), IMAGE),
    (nn.ZeroPad2d((1, 2, 0, 1)), IMAGE),
    (nn.ConstantPad1d(2, 0.5), STEPS),
    (nn.Flatten(2), IMAGE),
    (nn.Unflatten(1, (2, 4)), ROWS),
    (nn.Dropout(0.3, inplace=True), ROWS),
    (nn.AlphaDropout(0.2), ROWS),
    (nn.ReLU(inplace=True), ROWS),
    (nn.LeakyReLU(0.2), ROWS),
    (nn.PReLU(8), ROWS),
    (nn.RReLU(0.1, 0.4), ROWS),
    (nn.ELU(0.5), ROWS),
    (nn.GELU("tanh"), ROWS),
    (nn.Hardtanh(-0.5, 0.25), ROWS),
    (nn.Softplus(2.0, 5.0), ROWS),
    (nn.Threshold(0.1, 3.0), ROWS),
    (nn.GLU(-1), ROWS),
    (nn.Softmax(-1), ROWS),
    (nn.Identity(), ROWS),
    (nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True), STEPS),
    (nn.GRU(8, 6, bias=False), STEPS),
    (nn.RNN(8, 6, nonlinearity="relu"), STEPS),
    (nn.TransformerEncoderLayer(8, 2, 16, 0.3, "gelu", norm_first=True, batch_first=True, bias=False), STEPS),
]


def alone(part: TorchPart) -> Recipe:
    return Recipe(1, (part,), (1,))


def built_again(layer: nn.Module) -> nn.Module:
    recipe = decode(encode(alone(describe(layer, "a.b"))))
    return build(recipe).parts[0]


@pytest.mark.parametrize(("layer", "shape"), SAMPLES, ids=lambda one: type(one).__name__)
def test_a_layer_is_built_again_as_it_was(layer: nn.Module, shape: tuple[int, ...]) -> None:
    again = built_again(layer)
    again.load_state_dict(layer.state_dict())
    dtype = next((one.dtype for one in layer.parameters()), torch.float32)
    x = torch.randn(shape).to(dtype)
    for training in (True, False):
        results = []
        for module in (layer, again):
            torch.manual_seed(1)
            results.append(module.train(training)(x.clone()))
        torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)


def test_embeddings_and_attention_are_built_again() -> None:
    embedding = nn.Embedding(10, 4, padding_idx=2, max_norm=1.5, norm_type=1.0)
    assert repr(built_again(embedding)) == repr(embedding)
    attention = nn.MultiheadAttention(8, 2, bias=False, add_bias_kv=True, kdim=4, vdim=6, batch_first=True)
    again = built_again(attention)
    again.load_state_dict(attention.state_dict())
    q, k, v = torch.randn(2, 3, 8), torch.randn(2, 5, 4), torch.randn(2, 5, 6)
    assert torch.equal(again(q, k, v)[0], attention(q, k, v)[0])


def test_what_was_changed_after_it_was_made_is_told() -> None:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 5))
    with pytest.raises(UsageError, match=r"a.b \(Linear\) is not what its class builds"):
        describe(layer, "a.b")


def test_names_are_the_models_own() -> None:
    layer = build(alone(describe(nn.BatchNorm1d(4), "deep.norm")))
    assert [name for name, _ in layer.named_parameters()] == ["deep.norm.weight", "deep.norm.bias"]
    assert next(name for name, _ in layer.named_buffers()) == "deep.norm.running_mean"
    assert [one.shape for one in layer.parameters()] == [(4,), (4,)]


def test_the_meta_device_holds_nothing() -> None:
    with torch.device("meta"):
        layer = build(
            alone(TorchPart("Linear", "0", (Option("in_features", 1 << 20), Option("out_features", 1 << 20))))
        )
    assert all(parameter.is_meta for parameter in layer.parameters())


def test_a_program_shares_the_weight_of_its_layer() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) @ self.fc.weight

    reading = read(Tied(), Example(torch.randn(3, 4)))
    layer = build(reading.recipes[0])
    assert [name for name, _ in layer.named_parameters()] == ["fc.weight", "fc.bias"]
    (out,) = layer(torch.randn(2, 4))
    out.sum().backward()
    assert layer.parts[0].weight.grad is not None


# ---- strangers ------------------------------------------------------------------------------------------

RECURRENT = (Option("input_size", 2), Option("hidden_size", 2), Option("num_layers", 1 << 30))
LINEAR = (Option("in_features", 4), Option("out_features", 4))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (TorchPart("system", "0"), "'system' is no layer of this machine's catalogue"),
        (TorchPart("__class__", "0"), "is no layer"),
        (TorchPart("Sequential", "0"), "is no layer"),
        (TorchPart("Linear", "0", (*LINEAR, Option("device", "cuda"))), "takes no option 'device'"),
        (TorchPart("Linear", "0", (*LINEAR, Option("in_features", 5))), "takes no option 'in_features'"),
        (TorchPart("Linear", "0", (Option("in_features", 4),)), "Linear cannot be built"),
        (TorchPart("Linear", "0", (Option("in_features", -4), Option("out_features", 4))), "Linear cannot be built"),
        (TorchPart("Upsample", "0", (Option("mode", "evil"),)), "the word 'evil', which no layer takes"),
        (TorchPart("Dropout", "0", (Option("p", float("nan")),)), "nan, not a finite number"),
        (TorchPart("Dropout", "0", (Option("p", 7.0),)), "Dropout cannot be built"),
        (TorchPart("LSTM", "0", RECURRENT),
            "at most 256 is allowed",
        ),
        (TorchPart("Linear", "0", LINEAR, keywords=(Keyword("hook", 1),)), "takes no argument 'hook'"),
        (TorchPart("Linear", "0", LINEAR, frozen=("gamma",)), "has no parameter 'gamma' to freeze"),
        (TorchPart("Linear", "0", (*LINEAR, Option("dtype", Dtype("int64")))), "Linear cannot be built"),
    ],
)  # fmt: skip
def test_a_hostile_part_is_refused(part: TorchPart, said: str) -> None:
    with pytest.raises(ProgramRefused, match=said):
        build(decode(encode(alone(part))))


def test_a_layer_beyond_the_memory_lent_is_refused_before_it_is_made() -> None:
    recipe = alone(
        TorchPart("Linear", "0", (Option("in_features", 1 << 30), Option("out_features", 1 << 20)))
    )
    with pytest.raises(ProgramRefused, match="this machine lends 1,048,576"):
        build(recipe, Limits(1 << 20, 1 << 40, MAX_NODES))


def test_references_look_back() -> None:
    ahead = TorchPart("Linear", "0", LINEAR, args=(Value(1),))
    with pytest.raises(
        ProgramRefused, match=r"part 0 of a recipe refers to value 1 before it is made \(1 are\)"
    ):
        decode(encode(alone(ahead)))
    with pytest.raises(ProgramRefused, match="the output of a recipe refers to value 2"):
        decode(encode(Recipe(1, (TorchPart("Linear", "0", LINEAR),), (2,))))


def test_results_are_as_many_as_announced() -> None:
    recipe = Recipe(1, (TorchPart("Linear", "0", LINEAR, results=2),), (1, 2))
    with pytest.raises(ProgramRefused, match="gives 1 tensors, and 2 were announced"):
        build(recipe)(torch.randn(2, 4))


def test_a_program_that_is_none_is_refused() -> None:
    with pytest.raises(ProgramRefused, match="begin with something else"):
        build(Recipe(1, (ProgramPart(b"nothing of any meaning", (0,), 1),), (1,)))


def test_a_layers_program_has_no_loss_and_a_models_has_one() -> None:
    reading = read(nn.Sequential(nn.Linear(2, 2), Double()), Example(torch.randn(2, 2)))
    (program,) = [
        part.program for recipe in reading.recipes for part in recipe.parts if isinstance(part, ProgramPart)
    ]
    assert parse(program, has_loss=False).graphs.train is not None
    with pytest.raises(ProgramRefused, match="the train graph has no loss"):
        parse(program)


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(ProgramRefused):
        decode(data)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_changed_byte_is_refused_or_built(data: st.DataObject) -> None:
    whole = bytearray(encode(alone(describe(nn.Conv2d(2, 2, 3), "conv"))))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        build(decode(bytes(whole)), Limits(1 << 24, 1 << 40, MAX_NODES))
    except ProgramRefused:
        return


def test_every_key_is_its_class() -> None:
    assert all(cls.__name__ == key for key, cls in LAYERS.items())
    assert len(LAYERS) > 80


def test_equal_recipes_are_equal_bytes() -> None:
    first, second = (encode(alone(describe(nn.Linear(4, 4), "0"))) for _ in range(2))
    assert first == second
    loose: Any = msgspec.msgpack.decode(first)
    assert len(first) < 120
    assert loose[0] == 1
