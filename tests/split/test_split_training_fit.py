"""Training over a feed is the plain loop, bit for bit; it stops, saves and goes on without losing one."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from split_feeds import LocalFeed
from split_training_parts import Noisy, digits, fit, model, plain_loop
from torch import nn
from torch.utils.data import TensorDataset

from manyhands.clock import ManualClock, SystemClock
from manyhands.errors import NonFinite, UsageError
from manyhands.split.training.pace import Pace
from manyhands.split.training.record import Record
from manyhands.split.training.saving import Saver
from manyhands.split.training.setup import Setup
from manyhands.training.state import weights_sha256
from manyhands.training.stopping import EarlyStopping


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_losses_have_the_bits_of_a_plain_loop(dropout):
    data = Noisy(digits())
    theirs, ours = model(dropout=dropout), model(dropout=dropout)
    torch.manual_seed(5)
    expected = plain_loop(data, theirs, epochs=3, batch_size=16, seed=11)
    torch.manual_seed(5)
    run, watcher = fit(
        LocalFeed({"train": data}, batch_size=16, shuffle=True, seed=11, epochs=3), Setup(ours)
    )
    history = run.run()
    assert watcher.losses == expected
    assert len(expected) == 15
    assert weights_sha256(ours) == weights_sha256(theirs)
    assert history["epochs"] == [0, 1, 2]
    sizes = [16, 16, 16, 16, 6]
    assert history["train_loss"][0] == pytest.approx(
        sum(a * b for a, b in zip(expected[:5], sizes, strict=True)) / 70, rel=1e-12
    )
    assert history["val_loss"] == [] == history["val_accuracy"]


def test_validation_equals_a_local_evaluation_with_a_short_last_batch():
    data, held_out = digits(), digits(37, seed=3)
    net = model()
    run, _ = fit(
        LocalFeed({"train": data, "val": held_out}, batch_size=16, shuffle=True, epochs=2),
        Setup(net, criterion=nn.CrossEntropyLoss()),
    )
    history = run.run()
    net.eval()
    with torch.no_grad():
        x, y = held_out.tensors
        expected = float(nn.functional.cross_entropy(net(x), y))
        accuracy = float((net(x).argmax(1) == y).float().mean())
    assert history["val_loss"][-1] == pytest.approx(expected, abs=1e-6)
    assert history["val_accuracy"][-1] == pytest.approx(accuracy, abs=1e-6)


def test_regression_on_floats_learns():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=generator)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
    run, _ = fit(
        LocalFeed(
            {"train": TensorDataset(x, y), "val": TensorDataset(x, y)}, batch_size=32, shuffle=True, epochs=20
        ),
        Setup(model(4, 1), criterion=nn.MSELoss(), learning_rate=0.02),
    )
    history = run.run()
    assert history["val_loss"][-1] < 0.1 * history["val_loss"][0]
    assert history["val_accuracy"] == []


def test_early_stopping_puts_the_best_weights_back():
    data = digits()
    labels = data.tensors[1]
    wrong = TensorDataset(data.tensors[0], (labels + 1) % 7)  # the better it trains, the worse this gets
    net = model()
    early = EarlyStopping(patience=2, min_delta=0.0)
    run, watcher = fit(
        LocalFeed({"train": data, "val": wrong}, batch_size=16, shuffle=True, epochs=30),
        Setup(net, learning_rate=0.05),
        early=early,
    )
    history = run.run()
    assert len(history["epochs"]) < 30
    best = min(range(len(history["val_loss"])), key=history["val_loss"].__getitem__)
    assert best == len(history["val_loss"]) - 3
    assert "stopped early" in watcher.notes[0]
    assert all(torch.equal(early.best_state[name], value) for name, value in net.state_dict().items())


class StopAfter(LocalFeed):
    """Sets an event after so many batches of training."""

    def __init__(self, *args, after: int, **terms):
        super().__init__(*args, **terms)
        self.after, self.stopping = after, threading.Event()

    def batches(self, phase, epoch, start=0):
        for made in super().batches(phase, epoch, start):
            self.after -= phase == "train"
            if self.after == 0:
                self.stopping.set()
            yield made


def test_a_stopped_run_goes_on_in_the_middle_of_an_epoch_with_the_same_bits(tmp_path):
    data, held_out = Noisy(digits()), digits(20, seed=3)
    terms = {"batch_size": 16, "shuffle": True, "seed": 11, "epochs": 3}
    datasets = {"train": data, "val": held_out}

    def setup():
        net = model(dropout=0.2)
        return Setup(net, scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.9), clip_norm=1.0)

    torch.manual_seed(5)
    whole, whole_watcher = fit(LocalFeed(datasets, **terms), setup(), early=EarlyStopping(patience=9))
    whole_history = whole.run()

    clock = SystemClock()
    torch.manual_seed(5)
    feed = StopAfter(datasets, after=8, **terms)
    saver, found = Saver.open(tmp_path, False, 5, {"batch_size": 16}, clock)
    assert found is None
    first, first_watcher = fit(
        feed, setup(), early=EarlyStopping(patience=9), saver=saver, stopping=feed.stopping
    )
    first.run()
    assert (first.record.epoch, first.record.sequence) == (1, 3)

    torch.manual_seed(77)  # a new process begins anywhere
    saver, found = Saver.open(tmp_path, True, 5, {"batch_size": 16}, clock)
    early = EarlyStopping(patience=9)
    second, second_watcher = fit(LocalFeed(datasets, **terms), setup(), early=early, saver=saver)
    second.record = saver.restore(found, second.learner, early)
    assert second.run() == whole_history
    assert first_watcher.losses + second_watcher.losses == whole_watcher.losses
    assert weights_sha256(second.learner.setup.model) == weights_sha256(whole.learner.setup.model)


def test_a_checkpoint_of_another_job_is_refused(tmp_path):
    clock = SystemClock()
    feed = LocalFeed({"train": digits()}, batch_size=16)
    saver, _ = Saver.open(tmp_path, False, 5, {"batch_size": 16}, clock)
    run, _ = fit(feed, Setup(model()), saver=saver)
    run.run()
    with pytest.raises(UsageError, match="batch_size=16, and the loaders now say 32"):
        Saver.open(tmp_path, True, 5, {"batch_size": 32}, clock)
    saver, found = Saver.open(tmp_path, "auto", 5, {"batch_size": 16}, clock)
    run, _ = fit(feed, Setup(model(outputs=8)))
    with pytest.raises(UsageError, match="another model"):
        saver.restore(found, run.learner, None)
    run, _ = fit(feed, Setup(model(), optimizer=torch.optim.SGD))
    with pytest.raises(UsageError, match="optimizer AdamW and is resumed with SGD"):
        saver.restore(found, run.learner, None)
    with pytest.raises(UsageError, match="holds no checkpoint"):
        Saver.open(tmp_path / "empty", True, 5, {}, clock)


def test_checkpoints_come_by_the_clock_and_at_the_end(tmp_path):
    clock = ManualClock()
    saver, _ = Saver.open(tmp_path, False, 1.0, {}, clock)

    class Ticking(LocalFeed):
        def batches(self, phase, epoch, start=0):
            for made in super().batches(phase, epoch, start):
                clock.sleep(25.0)
                yield made

    feed = Ticking({"train": digits()}, batch_size=16, epochs=2)
    run, _ = fit(feed, Setup(model()), clock=clock, saver=saver)
    run.run()
    assert sorted(path.name for path in (tmp_path / saver.run).glob("step-*")) == [
        "step-10",
        "step-6",
        "step-9",
    ]


def test_a_loss_that_is_not_a_number_ends_the_run_with_the_weights_before_it(tmp_path):
    x, y = (t.clone() for t in digits().tensors)
    x[40] = float("inf")
    net = model()
    saver, _ = Saver.open(tmp_path, False, 5, {}, SystemClock())
    run, _ = fit(LocalFeed({"train": TensorDataset(x, y)}, batch_size=16), Setup(net), saver=saver)
    with pytest.raises(
        NonFinite, match=r"epoch 0, batch 2 \(samples 32, 33, 34, 35, 36, …\) is nan after 2 steps"
    ):
        run.run()
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())
    assert (tmp_path / saver.run / "step-2").is_dir()


@pytest.mark.parametrize(
    ("criterion", "outputs", "target", "message"),
    [
        (nn.MSELoss(), 1, torch.randn(70), r"\(16, 1\) float32 and the targets are \(16,\).*squeeze"),
        (
            nn.CrossEntropyLoss(),
            3,
            torch.arange(70) % 7,
            "Targets of 3 classes must be whole numbers from 0 to 2",
        ),
        (None, 7, torch.randn(70), "cross-entropy does not fit.*whole numbers"),
        (nn.MSELoss(reduction="none"), 1, torch.randn(70, 1), "must be a scalar tensor"),
        (nn.BCEWithLogitsLoss(), 1, torch.rand(70), "does not fit"),
    ],
)
def test_a_loss_that_does_not_fit_is_named_with_both_shapes(criterion, outputs, target, message):
    data = TensorDataset(digits().tensors[0], target)
    run, _ = fit(
        LocalFeed({"train": data}, batch_size=16), Setup(model(outputs=outputs), criterion=criterion)
    )
    before = copy.deepcopy(run.learner.setup.model.state_dict())
    with pytest.raises(UsageError, match=message):
        run.run()
    assert all(torch.equal(before[n], v) for n, v in run.learner.setup.model.state_dict().items())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns(precision):
    data = digits(200)
    run, _ = fit(
        LocalFeed({"train": data}, batch_size=32, shuffle=True, epochs=8),
        Setup(model(), precision=precision, learning_rate=0.01),
    )
    history = run.run()
    assert history["train_loss"][-1] < 0.6 * history["train_loss"][0]
    assert run.learner.scale.is_used == (precision == "fp16")


def test_a_loss_of_ones_own_a_compiled_model_and_a_plateau_scheduler():
    seen = []

    def own(net, batch):
        x, y = batch
        output = net(x)
        seen.append(len(x))
        return nn.functional.cross_entropy(output, y), output

    setup = Setup(
        model(),
        compute_loss=own,
        compile="eager",
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        scheduler=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(
            o, factor=0.5, patience=0, threshold=10.0
        ),
    )
    feed = LocalFeed({"train": digits(), "val": digits(20, seed=3)}, batch_size=16, epochs=3)
    run, _ = fit(feed, setup)
    history = run.run()
    assert len(history["val_accuracy"]) == 3
    assert seen[:7] == [16, 16, 16, 16, 6, 16, 4]
    assert run.learner.optimizer.param_groups[0]["lr"] == 0.0125  # a threshold that nothing meets


def test_narrow_batches_are_wide_again_before_the_model():
    x = (torch.arange(70 * 6).reshape(70, 6) % 256).float()
    data = TensorDataset(x, digits().tensors[1])
    losses = []
    for transfer_dtype in (None, "uint8"):
        run, watcher = fit(LocalFeed({"train": data}, transfer_dtype, batch_size=16), Setup(model()))
        run.run()
        losses.append(watcher.losses)
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"precision": "fp8"}, "precision='fp8'"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"criterion": "mse"}, "criterion='mse' cannot be called"),
        ({"criterion": nn.MSELoss(), "compute_loss": print}, "two answers"),
        ({"compile": 3}, "compile=3"),
        ({"scheduler": 3}, "scheduler=3"),
    ],
)
def test_impossible_arguments_are_named(given, message):
    with pytest.raises(UsageError, match=message):
        Setup(model(), **given).check()


def test_a_record_survives_its_manifest():
    record = Record()
    record.trained(0, 16, 1.5, 16.0)
    record.close_epoch(0.5, None)
    assert Record.from_plain(record.to_plain()) == record


@pytest.mark.parametrize(
    ("pace", "sentence"),
    [
        (Pace(), "nothing measured yet"),
        (Pace(6.3, 3.7, 0.0, 9, True), "waiting for 2 loaders 63%: add loaders or send uint8"),
        (Pace(6.3, 3.7, 0.0, 9), "waiting for 2 loaders 63%: add loaders"),
        (Pace(0.5, 4.5, 5.0, 9), "writing checkpoints 50%: raise checkpoint_interval"),
        (Pace(0.5, 9.5, 0.0, 9), "computing 95%: the loaders keep up"),
    ],
)
def test_the_verdict_says_where_the_time_goes(pace, sentence):
    assert pace.verdict(2) == sentence


def test_wide_floats_are_seen_and_narrow_ones_are_not():
    x = (torch.arange(70 * 6).reshape(70, 6) % 256).float()
    data = TensorDataset(x, digits().tensors[1])
    for transfer_dtype, seen in ((None, True), ("uint8", False)):
        run, watcher = fit(LocalFeed({"train": data}, transfer_dtype, batch_size=16), Setup(model()))
        paces = []
        watcher.epoch_over = lambda record, learner, pace, paces=paces: paces.append(pace)
        run.run()
        assert paces[0].sends_wide_floats is seen
        assert paces[0].batches == 5
