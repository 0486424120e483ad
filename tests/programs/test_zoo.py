"""Every model of the zoo as a program: the same bits as eager, for sizes that capture has not seen."""

from __future__ import annotations

import pytest
import torch
from comparing import assert_same_evaluation, assert_same_step, shipped
from zoo import HUGGING, PLAIN, Member

from manyhands.programs.capture import capture
from manyhands.programs.proof import prove

_SLOW = {"gpt2-masked", "bert-mlm", "llama"}  # their kind is in the normal part already


def _members() -> list[object]:
    return [
        pytest.param(member, id=member.name, marks=[pytest.mark.slow] if member.name in _SLOW else [])
        for member in PLAIN + HUGGING
    ]


def _sizes(member: Member, *sizes: tuple[int, int]) -> list[tuple[int, int]]:
    return [(samples, length if member.lengths else 7) for samples, length in sizes]


@pytest.mark.parametrize("member", _members())
def test_a_program_has_the_bits_of_its_model(member: Member) -> None:
    model = member.model()
    captured = capture(model, member.loss_of, member.batches(*_sizes(member, (5, 7), (3, 6))))
    program = shipped(captured)
    assert list(dict(program.named_parameters())) == list(dict(model.named_parameters()))
    assert list(dict(program.named_buffers())) == list(dict(model.named_buffers()))
    for seed, batch in enumerate(member.batches(*_sizes(member, (6, 9), (2, 5), (6, 9)))):
        assert_same_step(model, program, member.loss_of, batch, seed)
        assert_same_evaluation(model, program, member.loss_of, batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2-masked", "bert-mlm"])
def test_a_batch_without_padding_has_the_same_bits(name: str) -> None:
    """Eager leaves a mask of ones to the kernel; a program, which may not look, always applies it."""
    (member,) = [member for member in HUGGING if member.name == name]
    model = member.model()
    captured = capture(model, member.loss_of, member.batches((5, 7), (3, 6)))
    batches = member.batches((4, 16), (2, 31))
    for batch in batches:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    prove(captured, model, member.loss_of, batches)


@pytest.mark.slow
@pytest.mark.parametrize("member", PLAIN + HUGGING, ids=lambda member: member.name)
def test_and_under_bf16_autocast(member: Member) -> None:
    model = member.model()
    with torch.autocast("cpu", torch.bfloat16):
        captured = capture(model, member.loss_of, member.batches(*_sizes(member, (5, 7), (3, 6))))
        prove(captured, model, member.loss_of, member.batches(*_sizes(member, (6, 9), (2, 5))))


def test_autocast_is_not_in_the_graph_but_in_the_run() -> None:
    """So a program is captured, proven and run under the precision of the run."""
    member = PLAIN[0]
    model = member.model()
    batches = member.batches((4, 0), (3, 0))
    plain = capture(model, member.loss_of, batches)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = capture(model, member.loss_of, batches)
        prove(mixed, model, member.loss_of, batches)
    assert mixed.program == plain.program
