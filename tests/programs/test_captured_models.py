"""What capture makes of a model: rows, constants, two modes; and the model left as it was."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from comparing import assert_same_evaluation, assert_same_step, bits, shipped
from torch import Tensor, nn
from zoo import PLAIN, Attention, CausalEncoder, Member, ResidualCNN

from manyhands.errors import ProgramRefused, UsageError
from manyhands.programs.capture import Captured, capture
from manyhands.programs.format import Graph, encode
from manyhands.programs.module import ProgramModule
from manyhands.programs.plan import Limits
from manyhands.programs.proof import OWN, prove
from manyhands.training.seeds import seed_generators

ZOO = {member.name: member for member in PLAIN}


def mean_square(model: nn.Module, batch: Tensor) -> Tensor:
    result: Tensor = model(batch).square().mean()
    return result


def captured_member(name: str, model: nn.Module | None = None) -> tuple[Member, nn.Module, Captured]:
    member = ZOO[name]
    model = member.model() if model is None else model
    return member, model, capture(model, member.loss_of, member.batches((5, 7), (3, 7)))


def operators(graph: Graph | None) -> list[str]:
    assert graph is not None
    return [node.operator for node in graph.nodes]


def test_the_mode_is_in_the_graph_so_there_are_two() -> None:
    """Trap: an exported graph keeps the dropout and the statistics of the mode it was traced in."""
    member, model, captured = captured_member("mlp")
    program = shipped(captured)
    (batch,) = member.batches((4, 0))
    assert_same_evaluation(model, program, member.loss_of, batch)
    assert program.training
    assert bits(program(batch)) != bits(program(batch))  # dropout draws again
    shown = program.eval()(batch)
    assert shown.shape == (4, 4)
    assert bits(shown) == bits(program(batch))


def test_a_tied_weight_is_one_row_and_one_parameter() -> None:
    """Trap: export gives a tied weight back twice, and each copy would get half of the gradient."""
    member, model, captured = captured_member("encoder")
    assert isinstance(model, CausalEncoder)
    (row,) = [row for row in captured.program.parameters if row.aliases]
    assert (row.name, row.aliases) == ("embed.weight", ("head.weight",))
    program = shipped(captured)
    assert program.get_parameter("head.weight") is program.get_parameter("embed.weight")
    assert set(program.state_dict()) == {
        *model.state_dict(),
        "positions",
    }  # a silent buffer is one like others
    (batch,) = member.batches((4, 7))
    assert_same_step(model, program, member.loss_of, batch, seed=0)


def test_one_row_of_batch_norm_is_refused_as_eager_refuses_it() -> None:
    """Trap: the operator computes a variance of nothing; the refusal is in torch's Python, not in the graph."""
    member, model, captured = captured_member("mlp")
    program = shipped(captured).train()
    one = member.batches((1, 0))[0]
    with pytest.raises(ValueError, match="more than 1 value"):
        member.loss_of(model.train(), one)
    with pytest.raises(ProgramRefused, match="batch_norm"):
        program(one)
    assert_same_evaluation(model, program, member.loss_of, one)


def test_frozen_parameters_and_silent_buffers_are_rows() -> None:
    member, model, captured = captured_member("sdpa")
    assert isinstance(model, Attention)
    assert {row.name: row.requires_grad for row in captured.program.parameters}["scale"] is False
    program = shipped(captured)
    for seed, batch in enumerate(member.batches((4, 7), (4, 7))):
        assert_same_step(model, program, member.loss_of, batch, seed)
    assert program.get_parameter("scale").grad is None
    assert int(program.get_buffer("seen")) == 2
    assert "positions" in {row.name for row in captured_member("encoder")[2].program.buffers}


def test_the_model_is_left_as_it_was() -> None:
    model = ZOO["cnn"].model()
    assert isinstance(model, ResidualCNN)
    model.block[1].eval()  # a frozen norm inside a training model

    def noisy(model: nn.Module, batch: Any) -> Tensor:
        return ZOO["cnn"].loss_of(model, batch) * random.random() * float(np.random.rand())

    before = {name: bits(buffer) for name, buffer in model.named_buffers()}
    batches = ZOO["cnn"].batches((4, 0), (3, 0))
    seed_generators(5)
    drawn = torch.rand(4), random.random(), np.random.rand()
    seed_generators(5)
    capture(model, noisy, batches)
    assert torch.equal(torch.rand(4), drawn[0])
    assert (random.random(), np.random.rand()) == drawn[1:]
    assert {name: bits(buffer) for name, buffer in model.named_buffers()} == before
    assert model.training
    assert not model.block[1].training


def test_a_frozen_norm_stays_frozen_in_the_train_graph() -> None:
    model = ZOO["cnn"].model()
    assert isinstance(model, ResidualCNN)
    model.block[1].eval()
    member, model, captured = captured_member("cnn", model)
    prove(captured, model, member.loss_of, member.batches((4, 0)))


def test_a_recurrent_module_still_trains_its_own_weights() -> None:
    """Export puts tensors without values into ``_flat_weights``, which forward reads."""
    member, model, _ = captured_member("lstm")
    member.loss_of(model, member.batches((3, 7))[0]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_attributes_that_forward_assigns_come_back() -> None:
    class Remembering(nn.Linear):
        last: Tensor | None = None
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.last = x
            self.calls += 1
            return super().forward(x)

    model = Remembering(3, 3)
    model.calls = 7
    capture(model, mean_square, [torch.randn(4, 3)])
    assert model.last is None
    assert model.calls == 7


def test_equal_constants_are_one() -> None:
    class Biased(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tensor([1.0, 2.0]) + torch.tensor([1.0, 2.0]) * torch.tensor(3.0)

    model = Biased()
    captured = capture(model, mean_square, [torch.randn(4, 2)])
    assert [row.shape for row in captured.program.constants] == [(2,), ()]
    prove(captured, model, mean_square, [torch.randn(3, 2)])


def test_a_constant_that_is_written_to_is_a_copy() -> None:
    class Written(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scale = torch.tensor([1.0, 2.0])
            scale.reshape(2, 1).mul_(2.0)
            other = torch.tensor([1.0, 2.0])
            other[0] = 5.0
            return x * scale * other.mul_(2.0)

    model = Written()
    captured = capture(model, mean_square, [torch.randn(4, 2)])
    prove(captured, model, mean_square, [torch.randn(3, 2)])
    program = shipped(captured)
    batch = torch.randn(3, 2)
    assert bits(program(batch)) == bits(program(batch))


def test_a_criterion_brings_its_tensors() -> None:
    weight = torch.tensor([0.5, 2.0, 1.0, 1.0])
    member = Member("weighted", ZOO["mlp"].build, ZOO["mlp"].batch, nn.CrossEntropyLoss(weight))
    model, batches = member.model(), member.batches((5, 0), (4, 0))
    others = {"criterion": member.criterion}
    captured = capture(model, member.loss_of, batches, others=others)
    assert "criterion.weight" in captured.tensors
    assert bits(shipped(captured).get_buffer("criterion.weight")) == bits(weight)
    prove(captured, model, member.loss_of, batches, others=others)
    # Without being told, it is a constant of the loss.
    unaware = capture(model, member.loss_of, batches)
    assert (4,) in [row.shape for row in unaware.program.constants]
    prove(unaware, model, member.loss_of, batches)


def test_what_nobody_uses_is_left_out_but_random_numbers() -> None:
    class Wasteful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            torch.sigmoid(self.unused(x))
            torch.dropout(x, 0.5, self.training)
            return torch.dropout(self.used(x), 0.5, self.training)

    model = Wasteful()
    captured = capture(model, mean_square, [torch.randn(4, 4)])
    assert "sigmoid.default" not in operators(captured.program.graphs.train)
    assert operators(captured.program.graphs.train).count("dropout.default") == 2
    prove(captured, model, mean_square, [torch.randn(3, 4)])


def test_no_gradient_leaves_a_region_without_gradients() -> None:
    class Stopped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                scale = self.inner(x).sigmoid()
                with torch.enable_grad():
                    kept = self.outer(x)
            result: Tensor = self.outer(x) * scale + kept
            return result

    model = Stopped()
    captured = capture(model, mean_square, [torch.randn(4, 4)])
    prove(captured, model, mean_square, [torch.randn(3, 4)])
    program = shipped(captured)
    program(torch.randn(3, 4)).backward()
    assert program.get_parameter("inner.weight").grad is None
    assert program.get_parameter("outer.weight").grad is not None


def test_an_ellipsis_is_written_out() -> None:
    class Einsum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("... i, i j -> ... j", x, self.weight) + torch.einsum(
                "...i,ji", x, self.weight
            )

    model = Einsum()
    prove(capture(model, mean_square, [torch.randn(4, 3, 4)]), model, mean_square, [torch.randn(2, 3, 4)])


def test_every_way_to_cast_is_a_dtype() -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x.to(memory_format=torch.channels_last).cpu())
            z = y.double().to(torch.float64, copy=True).add_(1.0).type_as(x) + x.to(y).float()
            kept = x.to(x.dtype, copy=True)
            kept.copy_(z, True)
            return torch.where(kept.bool(), z, kept.half().float())

    model = Casting()
    captured = capture(model, mean_square, [torch.randn(4, 2, 3, 3)])
    prove(captured, model, mean_square, [torch.randn(3, 2, 3, 3)])


@pytest.mark.parametrize("samples", [1, 2])
def test_batches_of_one_sample_are_enough(samples: int) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU())
    captured = capture(model, mean_square, [torch.randn(samples, 4)])
    prove(captured, model, mean_square, [torch.randn(1, 4), torch.randn(7, 4)])


def test_the_same_model_gives_the_same_bytes() -> None:
    first, second = captured_member("cnn")[2], captured_member("cnn")[2]
    assert encode(first.program) == encode(second.program)


def test_output_of_picks_what_eval_returns() -> None:
    model = nn.Linear(4, 3)
    captured = capture(
        model, mean_square, [torch.randn(4, 4)], output_of=lambda output: {"class": output.argmax(-1)}
    )
    batch = torch.randn(5, 4)
    assert torch.equal(shipped(captured).eval()(batch)["class"], model(batch).argmax(-1))


def test_a_batch_of_another_form_is_refused() -> None:
    member, _, captured = captured_member("mlp")
    program = shipped(captured)
    x, y = member.batches((4, 0))[0]
    for given in ([x, y], (x, y)):  # batches turn from one into the other on their way
        program(given)
    with pytest.raises(UsageError, match="another form"):
        program({"x": x, "y": y})
    with pytest.raises(UsageError, match=r"tensor 0 of the batch is torch.float64 \(4, 12\)"):
        program((x.double(), y))
    with pytest.raises(UsageError, match=r"takes float32 \('any', 12\)"):
        program((x[:, :11], y))


@pytest.mark.parametrize("name", ["", "a..b", "__class__", "forward", "a.training", "_modules", "_weights"])
def test_a_name_from_elsewhere_hides_nothing(name: str) -> None:
    _, _, captured = captured_member("mlp")
    rows = captured.program.parameters
    program = type(captured.program)(
        *[
            (type(rows[0])(name, rows[0].dtype, rows[0].shape), *rows[1:]) if field == "parameters" else value
            for field, value in zip(
                captured.program.__struct_fields__, _values(captured.program), strict=True
            )
        ]
    )
    tensors = {**captured.tensors, name: captured.tensors[rows[0].name]}
    with pytest.raises(ProgramRefused, match="no name for a tensor"):
        ProgramModule(program, tensors, limits=OWN)


def _values(program: Any) -> list[Any]:
    return [getattr(program, field) for field in program.__struct_fields__]


def test_a_missing_or_reshaped_tensor_is_refused() -> None:
    _, _, captured = captured_member("mlp")
    tensors = dict(captured.tensors)
    with pytest.raises(ProgramRefused, match="is missing"):
        ProgramModule(captured.program, {}, limits=OWN)
    tensors["0.weight"] = torch.zeros(2, 2)
    with pytest.raises(ProgramRefused, match=r"\(2, 2\); the program names float32 \(32, 12\)"):
        ProgramModule(captured.program, tensors, limits=OWN)


def test_a_machine_that_lends_less_refuses() -> None:
    member, _, captured = captured_member("mlp")
    program = ProgramModule(captured.program, captured.tensors, limits=Limits(1_000, 1 << 40, 1_000))
    with pytest.raises(ProgramRefused):
        program(member.batches((4, 0))[0])
