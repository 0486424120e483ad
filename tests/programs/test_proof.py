"""The proof finds what a trace gets silently wrong, and names the first tensor that shows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from comparing import bits
from torch import Tensor, nn
from zoo import PLAIN

from manyhands.errors import CaptureFailed
from manyhands.programs.capture import Captured, capture
from manyhands.programs.format import Graph, Graphs, Mutation, Node, Program
from manyhands.programs.proof import prove


def mean_square(model: nn.Module, batch: Tensor) -> Tensor:
    result: Tensor = model(batch).square().mean()
    return result


class Counting(nn.Module):
    """Multiplies by how often it was called: the trace holds one number."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Jittering(nn.Module):
    """Draws from numpy: the trace holds what it drew."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(np.random.default_rng().random())


class _Tripled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * 3


class OwnBackward(nn.Module):
    """Has a backward of its own: the trace holds the forward only."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _Tripled.apply(self.inner(x))
        return result


@pytest.mark.parametrize(
    ("kind", "what"),
    [(Counting, "the loss"), (Jittering, "the loss"), (OwnBackward, "the gradient of inner.weight")],
)
def test_what_a_trace_cannot_see_is_refused(kind: type[nn.Module], what: str) -> None:
    torch.manual_seed(0)
    model = kind()
    captured = capture(model, mean_square, [torch.randn(4, 4)])
    with pytest.raises(
        CaptureFailed, match=rf"in train mode, for a batch of \(5, 4\), {what} differs"
    ) as failure:
        prove(captured, model, mean_square, [torch.randn(5, 4)])
    assert "TrainingNode(model=...)" in str(failure.value)


def test_a_size_that_the_given_batches_lack_is_tried_too() -> None:
    """The first batch is run once more with a row added; here the third row is where it shows."""

    class Third(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (2 if torch.compiler.is_exporting() or len(x) < 3 else 5)

    model = Third()
    captured = capture(model, mean_square, [torch.randn(2, 4)])
    with pytest.raises(CaptureFailed, match=r"for a batch of \(3, 4\), the loss differs"):
        prove(captured, model, mean_square, [torch.randn(2, 4)])


def _tampered(captured: Captured, **changes: Any) -> Captured:
    program, graph = captured.program, captured.program.graphs.train
    assert graph is not None
    fields = {name: getattr(graph, name) for name in graph.__struct_fields__}
    train = Graph(**{**fields, **changes})
    whole = {name: getattr(program, name) for name in program.__struct_fields__}
    return Captured(Program(**{**whole, "graphs": Graphs(train, program.graphs.eval)}), captured.tensors)


def test_a_buffer_that_differs_is_named() -> None:
    member = PLAIN[0]
    model = member.model()
    batches = member.batches((4, 0), (3, 0))
    captured = capture(model, member.loss_of, batches)
    graph = captured.program.graphs.train
    assert graph is not None
    counts = [at for at, node in enumerate(graph.nodes) if node.operator == "add_.Tensor"]
    nodes = list(graph.nodes)
    nodes[counts[0]] = Node("add_.Tensor", (graph.nodes[counts[0]].args[0], 2))
    with pytest.raises(CaptureFailed, match=r"buffer stem\.1\.num_batches_tracked differs \(by up to 1\)"):
        prove(_tampered(captured, nodes=tuple(nodes)), model, member.loss_of, batches)


def test_a_mutation_is_done_after_the_run() -> None:
    """Our own capture writes buffers in place; the format also has values that buffers take afterwards."""

    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kept", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.kept

    model = Keeping()
    captured = capture(model, mean_square, [torch.randn(4, 4)])
    graph = captured.program.graphs.train
    assert graph is not None
    assert graph.loss is not None
    with pytest.raises(CaptureFailed, match="buffer kept differs"):
        prove(
            _tampered(captured, mutations=(Mutation(0, graph.loss),)), model, mean_square, [torch.randn(3, 4)]
        )


def test_the_proof_leaves_no_trace() -> None:
    member = PLAIN[0]
    model = member.model()
    batches = member.batches((4, 0))
    captured = capture(model, member.loss_of, batches)
    state = {name: bits(tensor) for name, tensor in model.state_dict().items()}
    torch.manual_seed(9)
    drawn = torch.rand(2)
    torch.manual_seed(9)
    prove(captured, model, member.loss_of, batches)
    assert torch.equal(torch.rand(2), drawn)
    assert {name: bits(tensor) for name, tensor in model.state_dict().items()} == state
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_program_that_every_node_would_refuse_is_the_owners_to_hear_of() -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x * number for number in range(513)])

    model = Wide()
    captured = capture(model, mean_square, [torch.randn(4, 2)])
    with pytest.raises(CaptureFailed, match=r"no node would run .*512.*TrainingNode"):
        prove(captured, model, mean_square, [torch.randn(3, 2)])
