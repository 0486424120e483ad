"""Graphs written by hand give the bits of the eager module, and leave nothing behind that they need not."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from building import ROOMY, Builder, mlp, single
from samples import all_samples
from torch import nn
from torch.nn import functional

from manyhands.errors import ProgramRefused
from manyhands.programs import constants
from manyhands.programs.format import Ref, encode
from manyhands.programs.interpreter import Interpreter
from manyhands.programs.operators import TABLE
from manyhands.programs.parser import parse
from manyhands.programs.plan import Limits


def test_an_mlp_gives_the_loss_and_gradients_of_the_module_to_the_bit():
    build, model, loss, scores = mlp([64, 128, 32, 10])
    interpreter = build.interpreter(loss, scores)
    twin = copy.deepcopy(model)
    for rows in (1, 5, 16):
        x, y = torch.randn(rows, 64), torch.randint(0, 10, (rows,))
        ran = interpreter.run(list(model.parameters()), [], [x, y])
        wanted = functional.cross_entropy(twin(x), y)
        ran.loss.backward()
        wanted.backward()
        assert torch.equal(ran.loss, wanted)
        assert torch.equal(ran.outputs[0], twin(x))
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_batch_norm_writes_its_statistics_into_the_buffers_given():
    layer = nn.BatchNorm1d(6).train()
    build = Builder()
    weight, bias = build.parameter(layer.weight), build.parameter(layer.bias)
    mean, variance, seen = (build.buffer(buffer) for buffer in layer.buffers())
    x = build.leaf(torch.float32, None, 6)
    build.call("add_.Tensor", seen, 1)
    y = build.call("batch_norm.default", x, weight, bias, mean, variance, True, 0.1, 1e-5, False)
    interpreter = build.interpreter(build.call("mean.default", y), y)
    twin = copy.deepcopy(layer)
    batch = torch.randn(7, 6)
    ran = interpreter.run(list(layer.parameters()), list(layer.buffers()), [batch])
    assert torch.equal(ran.outputs[0], twin(batch))
    for ours, theirs in zip(layer.buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(
        ProgramRefused, match=r"node 1 .*more than 1 value per channel when training.*\[1, 6\]"
    ):
        interpreter.run(list(layer.parameters()), list(layer.buffers()), [torch.randn(1, 6)])


def test_dropout_draws_what_the_module_draws():
    build = Builder()
    x = build.leaf(torch.float32, None, 8)
    interpreter = build.interpreter(None, build.call("dropout.default", x, 0.5, True))
    batch = torch.randn(4, 8)
    interpreter.cost([(torch.float32, (4, 8))])  # a dry run draws nothing
    torch.manual_seed(3)
    interpreter.cost([(torch.float32, (5, 8))])
    ours = interpreter.run([], [], [batch]).outputs[0]
    torch.manual_seed(3)
    assert torch.equal(ours, functional.dropout(batch, 0.5))


def test_sizes_follow_the_batch():
    build = Builder()
    x = build.leaf(torch.float32, None, 4)
    size = build.call("sym_size.int", x, 0)
    twice = build.call("int.mul", size, 2)
    interpreter = build.interpreter(None, build.call("view.default", x, [twice, -1]))
    for rows in (2, 3, 8):
        assert interpreter.run([], [], [torch.randn(rows, 4)]).outputs[0].shape == (2 * rows, 2)


def test_several_results_and_lists_of_tensors():
    build = Builder()
    x = build.leaf(torch.float32, None, 6)
    parts = build.call("split.Tensor", x, 2, 1)
    first, last = Ref(parts.value, 0), Ref(parts.value, 2)
    joined = build.call("cat.default", [last, first, x], 1)
    whole = build.call("cat.default", parts, 0)
    batch = torch.randn(3, 6)
    got = build.interpreter(None, joined, whole).run([], [], [batch]).outputs
    a, b, c = batch.split(2, 1)
    assert torch.equal(got[0], torch.cat([c, a, batch], 1))
    assert torch.equal(got[1], torch.cat([a, b, c], 0))


def test_constants_arrive_as_they_were():
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    table = torch.randn(5, 5)
    build = Builder()
    hidden, numbers = build.constant(mask), build.constant(table)
    x = build.leaf(torch.float32, 5, 5)
    y = build.call("masked_fill.Scalar", build.call("add.Tensor", x, numbers), hidden, float("-inf"))
    batch = torch.randn(5, 5)
    got = build.interpreter(None, y).run([], [], [batch]).outputs[0]
    assert torch.equal(got, (batch + table).masked_fill(mask, float("-inf")))


def test_a_bool_constant_of_other_bytes_is_refused():
    build = Builder()
    hidden = build.constant(torch.zeros(3, dtype=torch.bool))
    program = build.program(None, build.call("logical_not.default", hidden), mode="eval")
    data = bytearray(encode(program))
    data[-64] = 7
    with pytest.raises(ProgramRefused, match="constant 0 is bool and holds a byte above 1"):
        constants.tensors(parse(bytes(data)))


def test_a_value_goes_with_its_last_use():
    build = Builder()
    x = build.leaf(torch.float32, None, 4)
    for _ in range(3):
        x = build.call("exp.default", x)
    interpreter = build.interpreter(None, build.call("mul.Tensor", x, 2.0))
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    assembly = interpreter._assembly(((torch.float32, torch.Size([2, 4])),))
    values = [torch.randn(2, 4), *assembly.rest]
    for call, take, slot, done in assembly.steps:
        values[slot] = call(*take(values))
        alive.append(weakref.ref(values[slot]))
        for ended in done:
            values[ended] = None
        gc.collect()
        most = max(most, sum(one() is not None for one in alive))
    assert most == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state, leaves: (state[:-1], leaves), "not of the dtypes and shapes"),
        (lambda state, leaves: ([state[0][:1], *state[1:]], leaves), "not of the dtypes and shapes"),
        (lambda state, leaves: ([state[0].double(), *state[1:]], leaves), "not of the dtypes and shapes"),
        (lambda state, leaves: (state, leaves[:1]), "a batch of 1 tensors; the program takes 2"),
        (lambda state, leaves: (state, [leaves[0][:, :3], leaves[1]]), "batch tensor 0 is torch.float32"),
        (lambda state, leaves: (state, [leaves[0], leaves[1].int()]), "batch tensor 1 is torch.int32"),
        (lambda state, leaves: (state, [leaves[0], leaves[1][:2]]), "node .*cross_entropy"),
    ],
)
def test_other_tensors_than_the_program_names_are_refused(change, reason):
    build, model, loss, scores = mlp([4, 8, 3])
    interpreter = build.interpreter(loss, scores)
    state, leaves = change(list(model.parameters()), [torch.randn(5, 4), torch.randint(0, 3, (5,))])
    with pytest.raises(ProgramRefused, match=reason):
        interpreter.run(state, [], leaves)


def test_values_out_of_range_raise_and_do_not_read():
    build, model, loss, scores = mlp([4, 8, 3])
    interpreter = build.interpreter(loss, scores)
    for label in (3, -1, 1 << 62):
        with pytest.raises(IndexError):
            interpreter.run(list(model.parameters()), [], [torch.randn(1, 4), torch.tensor([label])])


def test_costs_are_counted_and_limits_name_the_node():
    build, _, loss, scores = mlp([64, 128, 10])
    leaves = [(torch.float32, (16, 64)), (torch.int64, (16,))]
    cost = build.interpreter(loss, scores).cost(leaves)
    assert cost.flops >= 2 * 16 * (64 * 128 + 128 * 10)
    assert cost.bytes >= 4 * (64 * 128 + 128 + 128 * 10 + 10 + 16 * (64 + 128 + 128 + 10)) + 8 * 16
    for limits, reason in [
        (Limits(cost.bytes - 1, cost.flops, 10), "MiB; this machine lends"),
        (Limits(cost.bytes, cost.flops - 1, 10), "operations; this machine takes"),
        (Limits(cost.bytes, cost.flops, 3), "has 4 nodes; this machine takes 3"),
    ]:
        with pytest.raises(ProgramRefused, match=reason):
            build.interpreter(loss, scores, limits=limits).cost(leaves)
    assert build.interpreter(loss, scores, limits=Limits(cost.bytes, cost.flops, 4)).cost(leaves) == cost


@pytest.mark.parametrize("key", sorted(TABLE))
@pytest.mark.filterwarnings("ignore")
def test_every_row_gives_the_eager_result(key):
    torch.manual_seed(0)
    for args, kwargs in all_samples()[key]:
        program, buffers, leaves = single(key, args, kwargs)
        interpreter = Interpreter(parse(encode(program)), "eval", [], ROOMY)
        device = {"device": torch.device("cpu")} if TABLE[key].needs_device else {}
        torch.manual_seed(1)
        ours = interpreter.run([], [buffer.clone() for buffer in buffers], leaves).outputs[0]
        torch.manual_seed(1)
        theirs = TABLE[key].call(*args, **kwargs, **device)
        theirs = theirs[0] if isinstance(theirs, list | tuple) else torch.as_tensor(theirs)
        assert ours.shape == theirs.shape
        assert ours.dtype == (theirs.dtype if ours.dtype != torch.float32 else torch.float32)
        assert torch.equal(ours.nan_to_num(), theirs.to(ours.dtype).nan_to_num())
