"""One loader, several trainers: they share what is asked, and the answer is that of one."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from split_trainers import serving, up
from split_training_parts import digits, model
from torch import nn
from torch.utils.data import TensorDataset

from manyhands.split.inference.collecting import InMemory, InOrder
from manyhands.split.loader import CPULoader
from manyhands.split.trainer import GPUTrainer
from manyhands.split.training.scores import Hits, Scores


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYHANDS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MANYHANDS_NETWORK__WAIT_TIMEOUT", "60")


@pytest.fixture
def trainers():
    """Starts so many trainers with equal weights; their addresses."""
    with ExitStack() as stack:
        running = []

        def start(run, **setup):
            addresses = []
            for _ in range(2):
                trainer = GPUTrainer(port=0, host="localhost")
                trainer.setup_model(model(), **setup)
                outcome = stack.enter_context(serving(trainer, run))
                addresses.append("{}:{}".format(*up(trainer, outcome)))
                running.append(trainer)
            return addresses

        yield start
        for trainer in running:
            trainer.stop()


def loader_of(data, **setup):
    loader = CPULoader(num_workers=0)
    loader.setup_dataset(data, **{"batch_size": 16, **setup})
    return loader


def test_two_trainers_validate_as_one(trainers):
    held_out, net = digits(90, seed=3), model()
    addresses = trainers(lambda trainer: trainer.start_service("validation"), criterion=nn.CrossEntropyLoss())
    result = loader_of(held_out, shuffle=False).run_validation(addresses)
    x, y = held_out.tensors
    net.eval()
    with torch.no_grad():
        logits = net(x)
    assert (result["total_samples"], result["total_batches"]) == (90, 6)
    assert result["average_loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, y)), abs=1e-6)
    assert result["accuracy"] == pytest.approx(float((logits.argmax(1) == y).float().mean()), abs=1e-6)
    assert [row["batch"] for row in result["detailed_results"]] == list(range(6))
    assert [row["samples"] for row in result["detailed_results"]] == [16] * 5 + [10]


class Torn(TensorDataset):
    """All of its second batch cannot be read."""

    def __getitem__(self, index):
        if 16 <= index < 32:
            raise ValueError("a torn picture")
        return super().__getitem__(index)


def test_two_trainers_infer_as_one_and_a_batch_that_is_bad_is_left_out(trainers, tmp_path, monkeypatch):
    monkeypatch.setenv("MANYHANDS_DATA__ON_BAD_SAMPLE", "quarantine")
    data, net = digits(100, seed=3), model()
    addresses = trainers(lambda trainer: trainer.start_service("inference"))
    loader = loader_of(Torn(*data.tensors), shuffle=False)
    results = [loader.run_inference(addresses), loader.run_inference(addresses, output=tmp_path / "out")]
    net.eval()
    with torch.no_grad():
        expected = net(data.tensors[0]).argmax(1).numpy()
    good = [index for index in range(100) if not 16 <= index < 32]
    for result in results:
        assert (result["total_samples"], result["total_batches"]) == (84, 7)
        assert result["indices"].tolist() == good
        assert np.array_equal(result["predictions"], expected[good])


def test_the_ranks_of_a_training_job_validate_on_everything(trainers):
    """They must decide alike when to stop, so each of them has the figures of all the data."""
    data, held_out, net = digits(96), digits(45, seed=3), model()
    histories = []
    addresses = trainers(
        lambda trainer: histories.append(trainer.start_training()),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
    )
    loader_of(data, val_dataset=held_out).start_loading(addresses, epochs=1)
    x, y = held_out.tensors
    net.eval()
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(net(x), y))
    assert [history["val_loss"] for history in histories] == [[pytest.approx(loss, abs=1e-6)]] * 2


def test_rows_are_kept_once_those_before_them_are_there():
    order = InOrder(InMemory({}, 30))
    rows = {"indices": np.arange(10)}
    assert order.add(2, 10, rows) == 0
    assert order.add(1, 10, rows) == 0
    assert order.add(0, 10, rows) == 3
    assert order.add(1, 10, rows) == 3
    assert order.sink.finish()["total_samples"] == 30


def test_scores_of_shares_are_those_of_the_whole():
    whole, shares = Scores(keeps_details=True), [Scores(keeps_details=True) for _ in range(3)]
    for number, (samples, loss) in enumerate([(4, 0.5), (4, 1.5), (3, 2.0)]):
        for scores in (whole, shares[number % 2]):
            scores.add(samples, loss, samples, Hits(number, number + 1, samples), number)
    together = Scores.together([share.sums() for share in shares])
    assert together.result() == whole.result()
    shares[0].add(1, 1.0, 1.0, None, 3)
    assert "accuracy" not in Scores.together([share.sums() for share in shares]).result()
