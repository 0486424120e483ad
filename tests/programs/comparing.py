"""The oracle of capture: a program beside the eager module it came from, bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from manyhands.programs.capture import Captured
from manyhands.programs.format import encode
from manyhands.programs.module import ProgramModule
from manyhands.programs.parser import parse
from manyhands.programs.proof import OWN
from manyhands.programs.tracing import LossOf
from manyhands.tensors import flatten


def shipped(captured: Captured) -> ProgramModule:
    """The program as a node has it: parsed from bytes, over tensors of its own."""
    tensors = {name: tensor.detach().clone() for name, tensor in captured.tensors.items()}
    return ProgramModule(parse(encode(captured.program)), tensors, limits=OWN)


def assert_same_step(
    model: nn.Module, program: ProgramModule, loss_of: LossOf, batch: Any, seed: int
) -> None:
    """One training step of both: loss, every gradient, every buffer; and random numbers drawn alike."""
    torch.manual_seed(seed)
    eager = loss_of(model.train(), batch)
    eager_next = torch.rand(3)
    torch.manual_seed(seed)
    own = program.train()(batch)
    assert bits(own) == bits(eager)
    assert torch.equal(torch.rand(3), eager_next)
    for module, loss in ((model, eager), (program, own)):
        module.zero_grad()
        loss.backward()
    gradients = {name: p.grad for name, p in program.named_parameters()}
    for name, parameter in model.named_parameters():
        assert bits(gradients[name]) == bits(parameter.grad), name
    assert_same_buffers(model, program)


def assert_same_buffers(model: nn.Module, program: ProgramModule) -> None:
    theirs = dict(program.named_buffers())
    for name, buffer in model.named_buffers():
        assert bits(theirs[name]) == bits(buffer), name


@torch.no_grad()
def assert_same_evaluation(model: nn.Module, program: ProgramModule, loss_of: LossOf, batch: Any) -> None:
    """Loss and outputs in eval mode; torch's fused encoder kernel switched off, which no program has."""
    outputs: list[Any] = []
    hook = model.eval().register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        eager = loss_of(model, batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
        hook.remove()
    own, shown = program.evaluate(batch)
    assert bits(own) == bits(eager)
    expected = outputs[-1]
    if isinstance(expected, dict):
        assert {"loss", "logits"} <= set(shown)
        expected = {name: expected[name] for name in shown}
    pairs = zip(flatten(expected)[1], flatten(shown)[1], strict=True)
    assert all(bits(one) == bits(other) for one, other in pairs)


def bits(tensor: Tensor | None) -> tuple[Any, ...] | None:
    """Dtype, shape and bytes: what equality to the bit compares."""
    if tensor is None:
        return None
    plain = tensor.detach().contiguous()
    return plain.dtype, plain.shape, plain.reshape(-1).view(torch.uint8).numpy().tobytes()
