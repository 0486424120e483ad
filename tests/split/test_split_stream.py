"""Batches over real streams: each once whoever dies, whoever dials, and nothing for a stranger."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import torch
from split_loaders import Background, loader_processes
from torch.utils.data import DataLoader, TensorDataset

from manyhands.clock import SystemClock
from manyhands.errors import BadSample, Mismatch, ProtocolError, Refused, Unreachable, UsageError
from manyhands.settings import load
from manyhands.split import meeting
from manyhands.split.loader import CPULoader
from manyhands.split.reception import Reception
from manyhands.split.remote import RemoteLoader
from manyhands.split.seats import Bounds
from manyhands.wire import Invite, dial

INDICES = torch.arange(1000)
DATA = TensorDataset(INDICES.float().unsqueeze(1), INDICES)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MANYHANDS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def remote() -> RemoteLoader:
    return RemoteLoader(0, device="cpu").start()


def loader(length: int = 1000, batch_size: int = 10, **setup: object) -> CPULoader:
    made = CPULoader(num_workers=0)
    made.setup_dataset(TensorDataset(*DATA[:length]), batch_size=batch_size, **setup)  # type: ignore[arg-type]
    return made


def indices(batches: object) -> list[int]:
    return [index for batch in batches for index in batch[1].tolist()]  # type: ignore[attr-defined]


def slow_consumer(state: Path, seconds: float) -> None:
    with remote() as batches, loader_processes(state, batches.address[1], samples=1600, batch=4) as (child,):
        seen = []
        for _, targets in batches:
            time.sleep(seconds)  # the model
            seen.append(targets)
        assert len(seen) == 400
        assert sorted(torch.cat(seen).tolist()) == list(range(1600))
        code, out, err = child.end()
        assert (code, out.splitlines()) == (0, ["up", "{}"]), err


def test_400_batches_are_consumed_each_once_by_a_consumer_that_is_slow(state):
    slow_consumer(state, 0.005)


@pytest.mark.slow
def test_400_batches_are_consumed_each_once_by_a_consumer_of_30_ms(state):
    slow_consumer(state, 0.03)


def kill_one_of_three(state: Path, seed: int) -> float:
    """Every index once, with the bits of the samples; the longest wait for a batch after the kill."""
    rng = random.Random(seed)
    victim, at = rng.randrange(3), rng.randrange(5, 40)
    with (
        remote() as batches,
        loader_processes(state, batches.address[1], count=3, samples=600, batch=8, milliseconds=1) as loaders,
    ):
        while batches.start() and len(batches.loaders) < 3:
            time.sleep(0.01)
        seen: list[int] = []
        longest, before = 0.0, 0.0
        for number, (values, targets) in enumerate(batches):
            if number > at:
                longest = max(longest, time.monotonic() - before)
            if number == at:
                loaders[victim].kill()
            seen += targets.tolist()
            assert values[:, 0].tolist() == targets.tolist()
            before = time.monotonic()
        for number, child in enumerate(loaders):
            assert child.end()[0] == (-9 if number == victim else 0)
    expected = DataLoader(
        range(600),
        8,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
        collate_fn=list,  # type: ignore[arg-type]
    )
    assert seen == [index for batch in expected for index in batch]
    return longest


def test_a_loader_killed_among_three_costs_no_sample_and_no_long_wait(state):
    assert kill_one_of_three(state, 0) <= 2.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_a_loader_killed_at_random_costs_no_sample_and_no_long_wait(state, seed):
    assert kill_one_of_three(state, seed) <= 2.0


def test_a_loader_that_hangs_is_done_without(state):
    """Stopped, not dead: its stream stays open, and what it owes is leased to the other one."""
    with (
        remote() as batches,
        loader_processes(state, batches.address[1], count=2, samples=400, batch=8, milliseconds=1) as loaders,
    ):
        while len(batches.loaders) < 2:
            time.sleep(0.01)
        seen: list[int] = []
        for number, batch in enumerate(batches):
            if number == 5:
                loaders[0].process.send_signal(signal.SIGSTOP)
            seen += batch[1].tolist()
            if number == 45:
                loaders[0].process.send_signal(signal.SIGCONT)
    assert sorted(seen) == list(range(400))


def test_several_trainers_get_each_sample_once(state):
    trainers = [remote() for _ in range(3)]
    hosts = [f"127.0.0.1:{trainer.address[1]}" for trainer in trainers]
    feeding = Background(lambda: loader(1000, 10).start_loading(hosts, epochs=2))
    passes = [Background(lambda t=trainer: [indices(t), indices(t)]) for trainer in trainers]  # type: ignore[misc]
    shares = [passed.result() for passed in passes]
    assert feeding.result() == {}
    for epoch in range(2):
        assert sorted(index for share in shares for index in share[epoch]) == list(range(1000))
    assert [len(share[0]) for share in shares] == [333, 333, 334]


def test_the_trainer_may_dial_and_the_loader_listen(state):
    listening = loader(200, 10)
    feeding = Background(lambda: listening.start_loading(epochs=1, listen_port=0))
    while listening.port is None:
        time.sleep(0.01)
    batches = RemoteLoader(listening.port, host="127.0.0.1", device="cpu")
    assert sorted(indices(batches)) == list(range(200))
    assert feeding.result() == {}


def test_the_odd_loader_is_refused_by_name_and_the_job_goes_on(state, capfd):
    with remote() as batches:
        port = batches.address[1]
        feeding = Background(lambda: loader(400, 10).start_loading("127.0.0.1", epochs=1, gpu_port=port))
        stream = iter(batches)
        first = next(stream)
        with pytest.raises(Mismatch, match="length of the train data is 300, and this job's is 400"):
            loader(300, 10).start_loading("127.0.0.1", epochs=1, gpu_port=port)
        with pytest.raises(Mismatch, match="this trainer trains, and the loader asks for validation"):
            loader(400, 10).run_validation("127.0.0.1", gpu_port=port)
        assert sorted(indices([first, *stream])) == list(range(400))
        feeding.result()
    assert "refused the loader" in capfd.readouterr().err


def test_a_stranger_gets_nothing(state, tmp_path, monkeypatch):
    """Without an invite, with one of another trainer, and with another role: refused, and not a word of the job."""
    with remote() as batches, remote() as other:
        port, mine = batches.address[1], batches.invite
        monkeypatch.setenv("MANYHANDS_STATE_DIR", str(tmp_path / "elsewhere"))
        for invite in (None, other.invite):
            stranger = CPULoader(0, invite=invite)
            stranger.setup_dataset(DATA)
            with pytest.raises(Refused):
                stranger.start_loading("127.0.0.1", gpu_port=port)
        with dial(Invite.parse(mine)) as connection:
            stream = connection.stream()
            stream.send(b"\x00" * 40)
            with pytest.raises(ProtocolError, match="a message begins with magic"):
                stream.receive()
        assert batches.loaders == []


def test_both_sides_listening_end_with_who_should_dial_whom(state, monkeypatch):
    monkeypatch.setenv("MANYHANDS_NETWORK__WAIT_TIMEOUT", "0.5")
    door = meeting.listening("training", "127.0.0.1", 0, secure=True, cpu_host=None, clock=SystemClock())
    reception = Reception("training", [door], meeting.bounds_of(load(split=True)), SystemClock())
    with reception, pytest.raises(Unreachable, match=r"is 0.5.*run loader.start_loading\(gpu_host="):
        reception.next_job()
    with pytest.raises(Unreachable, match=r"start_training\(cpu_host=.*let the trainer listen"):
        loader().start_loading(listen_port=0)


def test_a_trainer_that_nobody_runs_ends_with_what_to_run_there(state, monkeypatch):
    monkeypatch.setenv("MANYHANDS_NETWORK__WAIT_TIMEOUT", "0.5")
    with remote() as batches:
        port, invite = batches.address[1], batches.invite
    dialling = CPULoader(0, invite=invite)
    dialling.setup_dataset(DATA)
    with pytest.raises(
        Unreachable, match=r"run trainer.start_training\(\) there; where it cannot be reached"
    ):
        dialling.start_loading("127.0.0.1", gpu_port=port)


def test_memory_on_both_sides_is_bounded_by_the_window(state):
    """A trainer that takes nothing: so much is on its way and no more, whatever the loader could make."""
    big = TensorDataset(torch.zeros(400, 64, 1024), torch.arange(400))  # 256 KiB a sample, 100 MiB in all
    feeder = CPULoader(num_workers=0)
    feeder.setup_dataset(big, batch_size=4, shuffle=False)
    clock = SystemClock()
    door = meeting.listening("training", "127.0.0.1", 0, secure=True, cpu_host=None, clock=clock)
    with Reception("training", [door], Bounds(window_bytes=8 << 20), clock) as reception:
        feeding = Background(lambda: feeder.start_loading("127.0.0.1", epochs=1, gpu_port=door.address[1]))
        job = reception.next_job()
        stream = job.batches("train", 0)
        next(stream)
        # Three batches of a little over 1 MiB fill the window of 4 MiB, while the trainer stands still.
        while job.figures().waiting_batches < 3:
            time.sleep(0.01)
        assert job.figures().waiting_bytes <= job.figures().window_bytes <= 8 << 20
        seen = [next(stream).work.sequence for _ in range(50)]
        assert job.figures().waiting_bytes <= job.figures().window_bytes <= 8 << 20
        assert seen == list(range(1, 51))
        job.finish({})
        feeding.result()


def test_a_bad_sample_stops_both_sides_or_is_left_out(state, monkeypatch):
    class Bad(TensorDataset):
        def __getitem__(self, index):
            if index == 13:
                raise ValueError("a torn picture")
            return super().__getitem__(index)

    def feed(port: int) -> object:
        bad = CPULoader(num_workers=0)
        bad.setup_dataset(Bad(*DATA[:40]), batch_size=10, shuffle=False)
        return bad.start_loading("127.0.0.1", epochs=1, gpu_port=port)

    with remote() as batches:
        feeding = Background(lambda: feed(batches.address[1]))
        with pytest.raises(BadSample, match=r"sample 13 of the train data.*a torn picture") as caught:
            indices(batches)
        assert caught.value.index == 13
        batches.close()
        with pytest.raises(BadSample, match="a torn picture"):
            feeding.result()
    monkeypatch.setenv("MANYHANDS_DATA__ON_BAD_SAMPLE", "quarantine")
    with remote() as batches:
        feeding = Background(lambda: feed(batches.address[1]))
        assert indices(batches) == [*range(13), *range(14, 40)]
        feeding.result()


def test_a_loader_that_is_stopped_leaves_the_rest_to_another_one(state):
    with remote() as batches:
        port = batches.address[1]
        first, second = loader(400, 10), loader(400, 10)
        feeding = Background(lambda: first.start_loading("127.0.0.1", epochs=1, gpu_port=port))
        stream = iter(batches)
        seen = indices([next(stream)])
        first.stop()
        assert feeding.result()["train_loss"] == []
        feeding = Background(lambda: second.start_loading("127.0.0.1", epochs=1, gpu_port=port))
        assert sorted([*seen, *indices(stream)]) == list(range(400))
        assert feeding.result() == {}


def test_arguments_that_cannot_be_are_refused_before_anything_starts(state):
    with pytest.raises(UsageError, match=r"call setup_dataset\(dataset\) first"):
        CPULoader().start_loading("127.0.0.1")
    with pytest.raises(UsageError, match="batch_size"):
        loader(batch_size=0)
    with pytest.raises(UsageError, match="give gpu_host to dial the trainer, or listen_port"):
        loader().start_loading("127.0.0.1", listen_port=5)
    with pytest.raises(UsageError, match="early_stopping needs validation data"):
        loader().start_loading("127.0.0.1", early_stopping={"monitor": "val_loss"})
    with pytest.raises(UsageError, match="its phases are train, val, infer"):
        loader(preprocessing_fn={"test": len})
