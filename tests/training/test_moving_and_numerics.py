"""State as one body, and which processes compute the same bits."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from manyhands.training.moving import MovingState
from manyhands.training.state import ModelState, named_sha256, weights_sha256


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(3)


def test_attaching_and_detaching_keep_values_and_identity() -> None:
    model = Tied()
    before, weight = weights_sha256(model), model.embed.weight
    moving = MovingState(ModelState(model), ["norm.running_mean"])
    moving.attach()
    assert weights_sha256(model) == before
    assert model.head.weight is model.embed.weight is weight, "tied weights stay one parameter"
    moving.body.zero_()
    assert model.head.weight.abs().sum() == 0, "the parameters are views of the body"
    model.norm.running_mean.fill_(7.0)
    assert 7.0 in moving.layout.views(moving.body)[-1].tolist()
    moving.detach()
    moving.body.fill_(255)
    assert model.embed.weight.abs().sum() == 0, "storage of its own again"
    assert moving.layout.specs[0].name == "embed.weight"
    assert len([s for s in moving.layout.specs if "head" in s.name]) == 0


def test_an_odd_layout_is_mirrored_instead() -> None:
    model = nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)
    moving = MovingState(ModelState(model), [])
    moving.attach()
    assert not moving.is_attached
    with torch.no_grad():
        model.weight.fill_(2.0)
    moving.to_body()
    assert moving.layout.views(moving.body)[0].unique().tolist() == [2.0]
    moving.body.zero_()
    moving.to_model()
    assert model.weight.abs().sum() == 0


def test_the_hash_is_over_names_and_raw_bytes_sorted() -> None:
    a = {"b": torch.tensor([1.0]), "a": torch.tensor([2], dtype=torch.int64)}
    assert named_sha256(a) == named_sha256(dict(reversed(a.items())))
    assert named_sha256(a) != named_sha256({**a, "b": torch.tensor([-1.0])})
    assert named_sha256({"w": torch.tensor(0.0)}) != named_sha256({"w": torch.tensor(-0.0)})
    assert named_sha256({"w": torch.ones(2, dtype=torch.bfloat16), "e": torch.ones(0)})


PROBE = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
from torch import nn
from manyhands.training import numerics
from manyhands.training.gradients import GradientLayout
from manyhands.training.objective import Objective
from manyhands.training.state import ModelState
model = nn.Sequential(nn.Linear(1000, 400), nn.Dropout(0.3), nn.ReLU(), nn.Linear(400, 10))
torch.manual_seed(0)
state = ModelState(model)
batch = (torch.randn(600, 1000), torch.randint(0, 10, (600,)))
layout = GradientLayout.of(state, {})
digest = numerics.probe(state, Objective(), layout, [(batch, 600.0)], seed=5, precision="fp32")
print(numerics.class_name(numerics.fingerprint(torch.device("cpu")), digest), digest)
"""


def test_one_class_for_equal_processes_and_another_for_two_threads() -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", PROBE, threads], stdout=subprocess.PIPE, text=True)
        for threads in ("1", "1", "2")
    ]
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert said[0] == said[1]
    assert said[0][0] != said[2][0]
    assert said[0][0].startswith("cpu-")
    assert "-t1-" in said[0][0]
