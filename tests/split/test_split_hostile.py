"""Peers with a valid invite that say what they must not: nothing is lost, and nobody else is harmed."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from split_hand import hand_loader
from split_loaders import Background
from split_trainers import serving, up
from split_training_parts import digits, model
from torch.utils.data import TensorDataset

from manyhands.clock import SystemClock
from manyhands.errors import ProtocolError, RunFailed
from manyhands.fleet.channels import Lost
from manyhands.split import meeting
from manyhands.split.inference.wishes import check_columns
from manyhands.split.jobs import Width
from manyhands.split.loader import CPULoader
from manyhands.split.messages import Batch, Need
from manyhands.split.reception import Reception
from manyhands.split.remote import RemoteLoader
from manyhands.split.seats import Bounds
from manyhands.split.terms import Terms
from manyhands.split.trainer import GPUTrainer

INDICES = torch.arange(100)
DATA = TensorDataset(INDICES.float().unsqueeze(1), INDICES)
BODY = [torch.zeros(10, 1), torch.arange(10)]


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYHANDS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MANYHANDS_NETWORK__WAIT_TIMEOUT", "60")


def honest(data=DATA, batch_size=10, **setup) -> CPULoader:
    loader = CPULoader(num_workers=0)
    loader.setup_dataset(data, batch_size=batch_size, shuffle=False, **setup)
    return loader


def terms_of(loader: CPULoader) -> Terms:
    return loader._supply.terms("training", loader._supply.recipes)


@pytest.mark.parametrize(
    ("indices", "widths", "body", "reason"),
    [
        (range(1, 11), (), BODY, "sent other samples than batch 0 of epoch 0"),
        (range(10), (), None, "says that it sent 10 samples, and sent none"),
        (range(10), (Width("int64"), None), BODY, "to become 'int64', which is no floating dtype"),
        (range(10), (Width("float32"),), BODY, "with 1 widths and 2 tensors"),
    ],
)
def test_a_batch_that_is_refused_is_made_by_another_loader(indices, widths, body, reason):
    """It once counted as there, so that nobody was asked for it again and the trainer waited for ever."""
    good = honest()
    with RemoteLoader(0, device="cpu") as batches:
        port = batches.address[1]
        consuming = Background(lambda: [index for _, y in batches for index in y.tolist()])
        with hand_loader(port) as hand:
            hand.join(terms_of(good))
            serial, work = hand.lease()
            assert (work.sequence, work.indices) == (0, tuple(range(10)))
            hand.say(Batch(serial, tuple(indices), (), widths), body)
            lost = hand.hear(Lost)
            assert isinstance(lost.error, ProtocolError)
            assert reason in str(lost.error)
        good.start_loading("127.0.0.1", epochs=1, gpu_port=port)
        assert consuming.result() == list(range(100))


def test_a_batch_that_is_needed_may_go_at_once_from_whoever_owes_it_now():
    """The one who was told so first may die; the next one's window is full of what comes after it."""
    clock, terms = SystemClock(), terms_of(honest())
    door = meeting.listening("training", "127.0.0.1", 0, secure=True, cpu_host=None, clock=clock)
    with Reception("training", [door], Bounds(window_bytes=1), clock) as reception:
        port = door.address[1]
        waiting = Background(lambda: next(reception.next_job().batches("train", 0)).work.sequence)
        with hand_loader(port) as first, hand_loader(port) as second:
            first.join(terms)
            head, _ = first.lease()
            second.join(terms)
            later, _ = second.lease()
            for hand, start in ((first, head + 1), (second, later)):
                for serial in (start, start + 1):
                    indices = tuple(range(10 * serial, 10 * serial + 10))
                    hand.say(Batch(serial, indices), BODY)
            assert first.hear(Need).serial == head
            first.leave()
            assert second.hear(Need).serial == head
            second.say(Batch(head, tuple(range(10))), BODY)
            assert waiting.result() == 0


def test_a_pass_that_was_left_behind_takes_nothing_from_the_next_one():
    with RemoteLoader(0, device="cpu") as batches:
        loader = honest()
        feeding = Background(lambda: loader.start_loading("127.0.0.1", 2, gpu_port=batches.address[1]))
        left_behind = iter(batches)
        next(left_behind)
        stream = iter(batches)
        seen = next(stream)[1].tolist()
        assert next(left_behind, None) is None
        seen += [index for _, y in stream for index in y.tolist()]
        assert seen == list(range(100))
    feeding.result()


def test_each_of_several_loaders_may_bring_weights(tmp_path):
    """Those that come first count; the others are no reason to turn their loader away."""
    brought = {name: torch.full_like(value, 0.5) for name, value in model().state_dict().items()}
    save_file(brought, tmp_path / "weights.safetensors")
    loaders = [honest() for _ in range(2)]
    gap = threading.Event()
    with RemoteLoader(0, device="cpu") as batches:
        port = batches.address[1]
        consuming = Background(lambda: [index for _, y in batches for index in y.tolist()])
        with hand_loader(port) as slow:  # makes nothing of what it is leased, so that the job lasts
            slow.join(terms_of(loaders[0]))
            slow.lease()
            for loader in loaders:
                loader.load_model(tmp_path / "weights.safetensors")
            feeding = [
                Background(lambda loader=loader: loader.start_loading("localhost", 1, gpu_port=port))
                for loader in loaders
            ]
            while len(batches.loaders) < 3:
                gap.wait(0.01)
        assert consuming.result() == list(range(100))
        assert [call.result() for call in feeding] == [{}, {}]


def test_one_job_that_the_model_does_not_take_does_not_end_the_service(capfd):
    trainer = GPUTrainer(port=0, host="localhost")
    trainer.setup_model(model())
    with serving(trainer, lambda t: t.start_service("inference")) as outcome:
        host, port = up(trainer, outcome)
        with pytest.raises(RunFailed, match="shapes cannot be multiplied"):
            honest(digits(features=5)).run_inference(host, gpu_port=port)
        assert honest(digits()).run_inference(host, gpu_port=port)["kept_samples"] == 70
        trainer.stop()
    assert "the next one may come: RuntimeError" in capfd.readouterr().err


@pytest.mark.parametrize(
    "sent",
    [
        {"indices": np.arange(3), "../../../.bashrc": np.arange(3)},
        {"indices": np.arange(3), "predictions": np.arange(2)},
        {"indices": np.arange(5)},
        {"predictions": np.arange(3)},
        {"indices": "predictions"},
        [np.arange(3)],
        None,
    ],
)
def test_rows_that_are_no_columns_are_not_taken(sent):
    """Their names become the names of files on the loader's disk."""
    with pytest.raises(ProtocolError, match="a trainer sent"):
        check_columns(sent, samples=4)
