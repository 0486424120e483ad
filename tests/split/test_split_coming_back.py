"""Loaders whose stream breaks and comes back, who cannot go on, and who ask at the same time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

import pytest
import torch
from split_hand import hand_loader
from split_loaders import Background
from split_trainers import serving, up
from split_training_parts import digits, model
from torch import nn
from torch.utils.data import TensorDataset

from manyhands.errors import RunFailed
from manyhands.split.intake.absent import EXPECTED_SECONDS, LINGER_SECONDS, Absent
from manyhands.split.intake.lateness import LATE_AT_FIRST_SECONDS, Lateness
from manyhands.split.intake.patience import ASKER_SECONDS
from manyhands.split.loader import CPULoader
from manyhands.split.messages import Batch, Hello, Leaving, Over, Welcome
from manyhands.split.remote import RemoteLoader
from manyhands.split.terms import Terms
from manyhands.split.trainer import GPUTrainer

INDICES = torch.arange(100)
DATA = TensorDataset(INDICES.float().unsqueeze(1), INDICES)


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYHANDS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MANYHANDS_NETWORK__WAIT_TIMEOUT", "60")


def loader_of(data=DATA, num_workers=0, **setup) -> CPULoader:
    loader = CPULoader(num_workers)
    loader.setup_dataset(data, **{"batch_size": 10, "shuffle": False, **setup})
    return loader


def terms_of(loader: CPULoader) -> Terms:
    return loader._supply.terms("training", loader._supply.recipes)


def hello(terms: Terms, errand: str) -> Hello:
    return Hello(terms, "hand", 4, errand=errand)


def test_a_loader_that_was_away_when_the_job_ended_hears_how():
    """It once dialled on for the whole of its patience."""
    with RemoteLoader(0, device="cpu") as batches:
        port, loader = batches.address[1], loader_of()
        consuming = Background(lambda: [index for _, y in batches for index in y.tolist()])
        with hand_loader(port) as hand:
            hand.join(terms_of(loader), errand="of the hand")
            hand.lease()
        assert loader.start_loading("127.0.0.1", epochs=1, gpu_port=port) == {}
        # The last epoch is used up, and whose stream has just broken is waited for.
        with hand_loader(port) as hand:
            hand.say(hello(terms_of(loader), "of the hand"))
            over, tree = hand.hear_with(Over)
        assert over.sentence == ""
        assert tree["result"] == {}
        assert consuming.result() == list(range(100))


def test_a_service_answers_who_comes_back_later_and_takes_others_in_for_a_job_of_their_own():
    trainer = GPUTrainer(port=0, host="localhost")
    trainer.setup_model(model())
    with serving(trainer, lambda t: t.start_service("training")) as outcome:
        host, port = up(trainer, outcome)
        loader = loader_of(digits(48), batch_size=16)
        with hand_loader(port) as hand:
            hand.join(terms_of(loader), errand="of the hand")
            hand.lease()
        history = loader.start_loading(host, epochs=1, gpu_port=port)
        again = loader.start_loading(host, epochs=1, gpu_port=port)  # another job, of equal terms
        with hand_loader(port) as hand:
            hand.say(hello(terms_of(loader), "of the hand"))
            _, tree = hand.hear_with(Over)
        assert tree["result"]["train_loss"] == history["train_loss"]
        assert tree["weights"] is None
        assert again["train_loss"] != history["train_loss"]
        with hand_loader(port) as hand:
            hand.say(hello(terms_of(loader), "of another hand"))
            hand.hear(Welcome)
        trainer.stop()


def test_what_is_late_is_told_by_how_long_others_took():
    lateness = Lateness()
    assert not lateness.is_late(LATE_AT_FIRST_SECONDS)
    assert lateness.is_late(LATE_AT_FIRST_SECONDS + 1)
    lateness.leased(0, 10.0)
    lateness.leased(0, 14.0)  # again, to another loader: it is the first lease that counts
    lateness.came(0, 15.0)
    assert not lateness.is_late(3 * 5.0)
    assert lateness.is_late(3 * 5.0 + 1)


def test_who_is_waited_for_at_the_end():
    absent = Absent()
    absent.gone("long ago", 0.0)
    assert not absent.is_expected(EXPECTED_SECONDS + 1, EXPECTED_SECONDS + 1)
    absent.gone("just now", 100.0)
    assert absent.is_expected(101.0, 101.0)
    assert not absent.is_expected(101.0, 101.1 + LINGER_SECONDS)
    absent.back("just now")
    assert not absent.is_expected(101.0, 101.0)


def test_two_validations_of_equal_terms_and_other_data_have_each_its_own_scores():
    """They once were one job, and got the scores of whoever's batches came first."""
    net, sets = model().eval(), [digits(40, seed=3), digits(40, seed=4)]
    with torch.no_grad():
        expected = [float(nn.functional.cross_entropy(net(x), y)) for x, y in (data.tensors for data in sets)]
    trainer = GPUTrainer(port=0, host="localhost")
    trainer.setup_model(net, criterion=nn.CrossEntropyLoss())
    with serving(trainer, lambda t: t.start_service("validation")) as outcome:
        host, port = up(trainer, outcome)
        for _ in range(3):
            asking = [
                Background(lambda data=data: loader_of(data).run_validation(host, gpu_port=port))
                for data in sets
            ]
            results = [call.result() for call in asking]
            found = [result["average_loss"] for result in results]
            assert found == pytest.approx(expected, abs=1e-6)
        trainer.stop()


def test_a_loader_that_cannot_go_on_hands_back_and_the_others_go_on(capfd):
    with RemoteLoader(0, device="cpu") as batches:
        port, loader = batches.address[1], loader_of()
        consuming = Background(lambda: [index for _, y in batches for index in y.tolist()])
        with hand_loader(port) as hand:
            hand.join(terms_of(loader))
            hand.lease()
            feeding = Background(lambda: loader.start_loading("127.0.0.1", epochs=1, gpu_port=port))
            wait_for(batches, 2)
            hand.say(Leaving("its workers died"))
            assert hand.hear(Over).sentence == "this loader has left"
            hand.say(Batch(0, tuple(range(10))), [torch.zeros(10, 1), torch.arange(10)])  # was on its way
            feeding.result()
        assert consuming.result() == list(range(100))
    assert "the loader hand has left: its workers died" in capfd.readouterr().err


def wait_for(batches: RemoteLoader, loaders: int) -> None:
    gap = threading.Event()
    while len(batches.loaders) < loaders:
        gap.wait(0.01)


def test_the_last_loader_that_cannot_go_on_ends_the_job():
    with RemoteLoader(0, device="cpu") as batches:
        port, terms = batches.address[1], terms_of(loader_of())
        consuming = Background(lambda: list(batches))
        with hand_loader(port) as first, hand_loader(port) as second:
            for hand in (first, second):
                hand.join(terms)
                hand.lease()
            first.say(Leaving())  # somebody stopped it: that is no reason
            first.hear(Over)
            second.say(Leaving("its workers died"))
            with pytest.raises(RunFailed, match="the last loader, hand, cannot go on: its workers died"):
                consuming.result()


class Deadly(TensorDataset):
    """Ends whatever process it is read in, but for that of the tests."""

    def __getitem__(self, index):
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.slow
def test_a_loader_whose_workers_die_is_done_without():
    with RemoteLoader(0, device="cpu") as batches:
        port = batches.address[1]
        consuming = Background(lambda: [index for _, y in batches for index in y.tolist()])
        dying = loader_of(Deadly(*DATA.tensors), num_workers=1)
        with hand_loader(port) as hand:
            hand.join(terms_of(dying), capacity=1)  # is leased one batch, makes nothing, and is not the last
            hand.lease()
            with pytest.raises(RunFailed, match="3 workers died making batch"):
                dying.start_loading("127.0.0.1", epochs=1, gpu_port=port)
        loader_of().start_loading("127.0.0.1", epochs=1, gpu_port=port)
        assert consuming.result() == list(range(100))


@pytest.mark.parametrize("mode", ["validation", "inference"])
def test_a_service_does_not_wait_for_ever_for_who_asked_and_went(mode, monkeypatch):
    """It once waited for batches that nobody else could bring, and served nobody any more."""
    monkeypatch.setitem(ASKER_SECONDS, mode, 0.0)
    trainer = GPUTrainer(port=0, host="localhost")
    trainer.setup_model(model(), criterion=nn.CrossEntropyLoss())
    with serving(trainer, lambda t: t.start_service(mode)) as outcome:
        host, port = up(trainer, outcome)
        loader = loader_of(digits(40), batch_size=16)
        phase = {"validation": "val", "inference": "infer"}[mode]
        terms = loader._supply.terms(mode, {phase: loader._supply.recipes["train"]})
        for _ in range(2):  # the second time it comes back, and is taken in again
            with hand_loader(port) as hand:
                hand.join(terms, errand="of the hand")
                hand.lease()
        ask = loader.run_validation if mode == "validation" else loader.run_inference
        assert ask(host, gpu_port=port)["total_samples"] == 40
        trainer.stop()
