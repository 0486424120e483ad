"""What may be wrong with a batch or a sample, end to end: a sentence, and nothing that was done before is lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from split_feeds import LocalFeed
from split_training_parts import CPU, digits, fit, model
from torch import nn
from torch.utils.data import TensorDataset

from manyhands.clock import ManualClock, SystemClock
from manyhands.errors import NonFinite, UsageError
from manyhands.split.inference.collecting import InMemory
from manyhands.split.inference.parts import OnDisk
from manyhands.split.intake.leftout import MOST_NAMED, LeftOut
from manyhands.split.jobs import Fault, Made, Work
from manyhands.split.loader import CPULoader
from manyhands.split.making.assembler import Assembler
from manyhands.split.narrow import narrow
from manyhands.split.recipe import Recipe
from manyhands.split.training.learner import Learner
from manyhands.split.training.saving import Saver
from manyhands.split.training.setup import Setup
from manyhands.training.stopping import EarlyStopping

WORK = Work("train", 0, 0, (0, 1, 2))


@pytest.mark.parametrize("part", ["preprocessing_fn", "collate_fn"])
def test_a_function_that_forgets_to_return_is_named(part):
    """A batch of None once counted as one whose samples were all bad: an epoch trained nothing, and said nothing."""
    recipe = Recipe(digits(), **{part: lambda *batch: None})
    with pytest.raises(UsageError, match=f"{part} returned None for batch 0 of the train data"):
        Assembler({"train": recipe}).make(WORK)


def test_batches_too_large_for_a_message_are_refused_at_once():
    with pytest.raises(UsageError, match="batch_size=100001 must be a whole number from 1 to 100000"):
        CPULoader().setup_dataset(digits(), batch_size=100_001)


def test_samples_that_are_left_out_are_named_once_and_not_without_end(capfd):
    left_out = LeftOut()
    faults = tuple(
        Fault(index, f"ValueError: torn\x1b[31m picture {index}\nTraceback") for index in range(30)
    )
    for epoch in range(2):
        left_out.add("attic", Made(Work("train", epoch, 0, tuple(range(30))), None, (), faults))
    said = capfd.readouterr().err.splitlines()
    assert len(said) == MOST_NAMED + 1
    assert (
        "left out sample 3 of the train data, which attic could not make: ValueError: torn?[31m picture 3"
        in said[3]
    )


class Tender(nn.Module):
    """Keeps statistics, and does not take what is over 100."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 7)

    def forward(self, x):
        normed = self.norm(x)
        if x.max() > 100:
            raise RuntimeError("too large")
        return self.head(normed)


@pytest.mark.parametrize(("value", "error"), [(math.nan, NonFinite), (1000.0, RuntimeError)])
def test_a_batch_that_cannot_be_trained_on_leaves_no_trace_and_what_was_trained_is_saved(
    tmp_path, value, error
):
    """Running statistics have seen such a batch by then, and were saved with its NaN."""
    x, y = (tensor.clone() for tensor in digits(64).tensors)
    expected, _ = fit(LocalFeed({"train": TensorDataset(x[:48], y[:48])}, batch_size=16), Setup(_tender()))
    expected.run()
    x[50] = value
    net = _tender()
    run, _ = fit(LocalFeed({"train": TensorDataset(x, y)}, batch_size=16), Setup(net))
    run.saver, _ = Saver.open(tmp_path, False, 60.0, {}, SystemClock())
    with pytest.raises(error):
        run.run()
    want = expected.learner.setup.model.state_dict()
    assert all(torch.equal(value, want[name]) for name, value in net.state_dict().items())
    saver, found = Saver.open(tmp_path, True, 60.0, {}, SystemClock())
    resumed = Learner(Setup(_tender()), CPU)
    resumed.prepare()
    record = saver.restore(found, resumed, None)
    assert (record.sequence, record.samples) == (3, 48)
    assert all(torch.equal(value, want[name]) for name, value in resumed.setup.model.state_dict().items())


def _tender() -> nn.Module:
    torch.manual_seed(0)
    return Tender()


def test_weights_of_half_a_step_are_not_saved(tmp_path):
    class Fragile(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            raise MemoryError("in the middle of it")

    feed = LocalFeed({"train": digits()}, batch_size=16)
    run, _ = fit(feed, Setup(model(), optimizer=lambda parameters: Fragile(parameters, 0.1)))
    run.saver, _ = Saver.open(tmp_path, False, 60.0, {}, SystemClock())
    with pytest.raises(MemoryError):
        run.run()
    assert not list(tmp_path.glob("*/step-*"))


def test_a_frozen_module_is_still_frozen_after_a_validation():
    net = _tender()
    net.norm.eval()
    before = net.norm.running_mean.clone()
    feed = LocalFeed({"train": digits(), "val": digits(20, seed=1)}, batch_size=16, epochs=2)
    run, _ = fit(feed, Setup(net))
    run.run()
    assert (net.training, net.norm.training, net.head.training) == (True, False, True)
    assert torch.equal(net.norm.running_mean, before)


def test_a_validation_loss_that_is_no_number_is_never_the_best():
    early = EarlyStopping(patience=2, min_delta=0.0)
    assert [early.update(loss, None, model()) for loss in (math.nan, 2.0, 1.0, math.nan)] == [False] * 4
    assert early.best == 1.0


def test_an_accuracy_that_there_is_none_of_cannot_be_monitored():
    x = torch.randn(40, 6)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    feed = LocalFeed({"train": data, "val": data}, batch_size=16, epochs=9)
    early = EarlyStopping(monitor="val_accuracy")
    run, _ = fit(feed, Setup(model(outputs=1), criterion=nn.MSELoss()), early=early)
    with pytest.raises(UsageError, match="the targets are no classes: monitor val_loss"):
        run.run()


@pytest.mark.parametrize("beside", [math.nan, math.inf])
def test_a_number_beyond_float16_is_refused_beside_one_that_is_none(beside):
    x = torch.tensor([1.0, 1e6, beside])
    with pytest.raises(UsageError, match=r"reaches 65504, and this batch holds 1 to 1e\+06"):
        narrow([x, torch.zeros(3)], "float16")
    kept, _ = narrow([torch.tensor([1.0, beside]), torch.zeros(2)], "float16")
    assert kept[0].dtype is torch.float16
    assert str(kept[0][1].item()) == str(beside)


def sinks(folder):
    on_disk = OnDisk(folder, {"top_k": 1}, ManualClock(), 20)
    on_disk.open()
    return [InMemory({}, 20), on_disk]


def test_rows_of_unlike_shapes_are_refused_and_not_written_behind_each_other(tmp_path):
    def batch(tokens: int) -> dict[str, np.ndarray]:
        return {"indices": np.arange(10), "raw_outputs": np.zeros((10, tokens), np.float32)}

    for sink in sinks(tmp_path):
        sink.add(10, batch(4))
        with pytest.raises(UsageError, match=r"rows of float32 \(5,\), and those before were float32 \(4,\)"):
            sink.add(10, batch(5))
        with pytest.raises(UsageError, match="raw_outputs of this batch has rows of none"):
            sink.add(10, {"indices": np.arange(10)})
        sink.add(0, {})
        assert sink.finish()["raw_outputs"].shape == (10, 4)


def test_a_folder_goes_on_with_the_dataset_that_it_was_begun_with(tmp_path):
    """A longer one was once appended to a finished result, whose headers then left the new rows out."""
    _, sink = sinks(tmp_path)
    sink.add(10, {"indices": np.arange(10)})
    sink.finish()
    longer = OnDisk(tmp_path, {"top_k": 1}, ManualClock(), 30)
    with pytest.raises(UsageError, match="a dataset of 20 samples, and this one has 30"):
        longer.open()
