"""Sessions: many ranks do what one process does on the same global batches, whatever their number."""

from __future__ import annotations

import functools
import operator
from pathlib import Path

import pytest
import rank_jobs
import torch
from launching import Launcher
from safetensors.torch import load_file, load_model
from torch.utils.data import DataLoader, IterableDataset

from manyhands.errors import UsageError
from manyhands.launch import session
from manyhands.launch.sharing import part_of

JOBS = Path(rank_jobs.__file__)


def newest(folder: Path) -> Path:
    [run] = folder.glob("run-*")
    return run / (run / "latest").read_text().strip() / "model.safetensors"


def difference(a: Path, b: Path) -> float:
    """The largest between two saved models."""
    left, right = load_file(newest(a)), load_file(newest(b))
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def test_three_ranks_are_one_process(launch: Launcher) -> None:
    done = launch(JOBS, "--nproc", "3", arguments=("everything", str(launch.folder)))
    assert done.code == 0, done.err
    assert done.out.endswith("[0] done\n")
    alone = rank_jobs.train(Path("alone"))
    assert difference(Path("ddp"), Path("alone")) <= 1e-6
    assert difference(Path("staged"), Path("ddp")) <= 1e-7
    losses = [Path(f"losses-{rank}").read_text().splitlines() for rank in range(3)]
    assert losses == [losses[0]] * 3
    assert [float(loss) for loss in losses[0]] == pytest.approx(alone, rel=1e-5)
    assert "0.weight" in load_file(newest(Path("ddp")))  # no "module."
    load_model(rank_jobs.network(), newest(Path("ddp")))

    # On another world size: here, the checkpoint of three ranks; a third epoch is that of one process.
    rank_jobs.train(Path("ddp"), epochs=3)
    rank_jobs.train(Path("alone"), epochs=3)
    assert difference(Path("ddp"), Path("alone")) <= 1e-6

    assert rank_jobs.parts()[0].resume("ddp", own=True) == {}  # another launch's
    rank_jobs.fewer_samples_than_ranks(Path())
    alone_gradients = torch.load("gradients-0.pt")
    for mine, theirs in zip(torch.load("gradients-2.pt"), alone_gradients, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


@pytest.mark.slow
def test_fsdp2_saves_what_one_process_loads(launch: Launcher) -> None:
    done = launch(JOBS, "--nproc", "2", arguments=("sharded", str(launch.folder)))
    assert done.code == 0, done.err
    rank_jobs.train(Path("alone"))
    assert difference(Path("fsdp"), Path("alone")) <= 1e-6
    rank_jobs.train(Path("alone"), epochs=3)
    rank_jobs.train(Path("fsdp"), epochs=3)
    assert difference(Path("fsdp"), Path("alone")) <= 1e-6
    assert difference(Path("first ddp"), Path("alone")) <= 1e-6


@pytest.mark.parametrize("size", [0, 1, 3, 4, 10])
def test_parts_are_a_batch_once(size: int) -> None:
    for world_size in (1, 3, 4):
        parts = [part_of(list(range(size)), rank, world_size) for rank in range(world_size)]
        assert functools.reduce(operator.iadd, parts, []) == list(range(size))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_a_session_changes_nothing_but_the_order(tmp_path: Path) -> None:
    s = session(device="cpu", log=f"csv:{tmp_path}/log.csv")
    model = rank_jobs.network()
    prepared, loader = s.prepare(model, DataLoader(rank_jobs.data(), 4, shuffle=True))
    assert prepared is model
    assert (s.rank, s.world_size, s.is_main, s.device.type) == (0, 1, True, "cpu")
    epochs = [torch.cat([inputs for inputs, _ in loader]) for _ in range(2)]
    assert not torch.equal(*epochs)
    assert torch.equal(*[epoch.sort(0).values for epoch in epochs])
    assert s.mean(3) == 3.0
    s.log(1, loss=0.5)
    s.close()
    assert (tmp_path / "log.csv").read_text() == "step,loss\n1,0.5\n"


def test_a_pass_that_is_broken_off_counts_as_one() -> None:
    s = session(device="cpu")
    loader = s.prepare(DataLoader(rank_jobs.data(), 4, shuffle=True))
    for _ in loader:
        break
    assert loader.state_dict() == {"epoch": 1, "batches": 0}
    assert len(list(loader)) == len(loader)


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    s = session(device="cpu")
    with pytest.raises(UsageError, match="not a dict"):
        s.prepare({})
    with pytest.raises(UsageError, match="no model was"):
        s.save(tmp_path)
    with pytest.raises(UsageError, match="no model was"):
        s.resume(tmp_path)
    with pytest.raises(UsageError, match="backend='nccl' needs CUDA"):
        session(device="cpu", backend="nccl")
    with pytest.raises(UsageError, match="strategy='zero'"):
        session(strategy="zero")  # type: ignore[arg-type]

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(UsageError, match="IterableDataset"):
        s.prepare(DataLoader(Stream()))
    with pytest.raises(UsageError, match="batch_size=None"):
        s.prepare(DataLoader(rank_jobs.data(), batch_size=None))


def test_a_bar_on_rank_0_ends_with_its_loop(capfd: pytest.CaptureFixture[str]) -> None:
    s = session(device="cpu")
    for number in s.progress(range(3)):
        s.show(loss=number)
    assert "step 3/3 · loss 2" in capfd.readouterr().err
