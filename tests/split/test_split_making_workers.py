"""Real worker processes: the same batches as without them, through shared memory, whatever dies."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from manyhands.errors import RunFailed, UsageError
from manyhands.split.data import create_simple_dataset
from manyhands.split.jobs import Maker, Phase, Work
from manyhands.split.making import start_maker
from manyhands.split.making.slots import Slot
from manyhands.split.making.starting import count_workers
from manyhands.split.making.threads import ThreadMaker
from manyhands.split.recipe import Recipe

WAIT = 60.0


class Augmented(Dataset[Any]):
    """Nested, random, of several dtypes; tells who made it."""

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> Any:
        if index in (13, 14):
            raise OSError(f"file {index} is torn")
        picture = torch.rand(3, 4, 4) * np.random.rand() + random.random()
        return {"picture": picture, "ids": (index, np.float64(index) / 2)}, os.getpid()


class Ragged(Augmented):
    def __getitem__(self, index: int) -> Any:
        return torch.arange(index + 1)


class Deadly(Augmented):
    def __getitem__(self, index: int) -> Any:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class Unborn(Augmented):
    def __setstate__(self, state: Any) -> None:
        raise OSError("no such disk here")

    def __getstate__(self) -> Any:
        return {"a": 1}


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for number in range(30):
            yield torch.tensor([number, torch.rand(1).item()]), os.getpid()


def padded(samples: list[Any]) -> Any:
    return torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)


RECIPES: dict[Phase, Recipe] = {
    "train": Recipe(Augmented(), 7),
    "val": Recipe(Ragged(), 7, collate_fn=padded),
    "infer": Recipe(Stream(), 7),
}


def works(phase: Phase = "train", epoch: int = 0, samples: int = 96, size: int = 8) -> list[Work]:
    return [
        Work(phase, epoch, start // size, tuple(range(start, min(samples, start + size))))
        for start in range(0, samples, size)
    ]


def made_by(maker: Maker, wanted: list[Work]) -> list[Any]:
    """The batches in order of sequence, each exactly once."""
    for work in wanted:
        maker.submit(work)
    got = []
    for _ in wanted:
        made = maker.next(WAIT)
        assert made is not None
        got.append(made)
    got.sort(key=lambda made: made.work.sequence)
    assert [made.work for made in got] == wanted
    return got


def drained(maker: Maker) -> None:
    while maker.next(WAIT) is not None:
        pass


def children(of: int | None = None) -> list[psutil.Process]:
    """Workers that live; one that was killed is none, though nobody may have waited for it yet."""
    workers = []
    for child in psutil.Process(of).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie too
            if "spawn_main" in " ".join(child.cmdline()):
                workers.append(child)
    return workers


def inline(recipes: dict[Phase, Recipe], wanted: list[Work]) -> list[Any]:
    maker = start_maker(recipes, 0)
    return made_by(maker, wanted)


@pytest.fixture(scope="module")
def maker() -> Iterator[Maker]:
    maker = start_maker(RECIPES, 2)
    yield maker
    maker.close()
    assert children() == []


def test_workers_make_the_same_batches_elsewhere(maker: Maker) -> None:
    here, there = inline(RECIPES, works(epoch=3)), made_by(maker, works(epoch=3))
    pids: set[int] = set()
    for mine, theirs in zip(here, there, strict=True):
        (a, _), (b, makers) = mine.batch, theirs.batch
        assert torch.equal(a["picture"], b["picture"])
        assert b["picture"].data_ptr() % 64 == 0
        assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a["ids"], b["ids"], strict=True))
        assert mine.indices == theirs.indices
        pids |= set(makers.tolist())
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_a_bad_sample_is_named_and_left_out(maker: Maker) -> None:
    bad = made_by(maker, works())[1]
    assert bad.indices == (8, 9, 10, 11, 12, 15)
    assert bad.batch[0]["ids"][0].tolist() == [8, 9, 10, 11, 12, 15]
    assert [fault.index for fault in bad.faults] == [13, 14]
    assert bad.faults[0].error.startswith("OSError: file 13 is torn\n")
    assert "in __getitem__" in bad.faults[0].error
    maker.submit(Work("train", 0, 0, (13, 14)))
    nothing = maker.next(WAIT)
    assert nothing is not None
    assert (nothing.batch, nothing.indices, len(nothing.faults)) == (None, (), 2)


def test_ragged_samples_go_through_the_users_collate(maker: Maker) -> None:
    for made in made_by(maker, works("val", samples=20)):
        assert made.batch.shape == (len(made.indices), made.indices[-1] + 1)


def test_samples_that_make_no_batch_stop_the_run_and_not_the_workers() -> None:
    with_workers = start_maker({"train": Recipe(Ragged()), "val": Recipe(Augmented())}, 1)
    try:
        for maker in (with_workers, start_maker({"train": Recipe(Ragged())}, 0)):
            maker.submit(Work("train", 0, 0, (3, 4)))
            with pytest.raises(
                UsageError, match=r"samples \[3, 4\] of the train data do not make one batch.*collate_fn"
            ):
                maker.next(WAIT)
        assert len(made_by(with_workers, works("val"))) == 12
    finally:
        with_workers.close()


def test_a_stream_is_read_by_one_worker(maker: Maker) -> None:
    here, there = inline(RECIPES, works("infer", samples=30)), made_by(maker, works("infer", samples=30))
    assert all(torch.equal(a.batch[0], b.batch[0]) for a, b in zip(here, there, strict=True))
    assert len({pid for made in there for pid in made.batch[1].tolist()}) == 1


def test_batches_that_are_kept_are_not_written_over(maker: Maker) -> None:
    expected = inline(RECIPES, works(epoch=5))
    kept = made_by(maker, works(epoch=5))
    for _ in range(3):
        made_by(maker, works(epoch=6))
    for mine, theirs in zip(expected, kept, strict=True):
        assert torch.equal(mine.batch[0]["picture"], theirs.batch[0]["picture"])


def test_shared_memory_comes_back_when_the_last_tensor_is_dropped(maker: Any) -> None:
    made_by(maker, works())
    gc.collect()
    kept = [made_by(maker, works())[0].batch[0]["ids"][0] for _ in range(3)]
    with maker._turn:
        maker._collect_freed()
        free = len(maker._assignments._free_slots)
    assert maker._assignments.num_slots - len(kept) <= free < maker._assignments.num_slots
    del kept
    with maker._turn:
        maker._collect_freed()
        assert len(maker._assignments._free_slots) == maker._assignments.num_slots


def test_memory_layout_survives_and_outlives_the_slot() -> None:
    here = Slot()
    there = Slot(os.dup(here.descriptor))
    picture, empty = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last), torch.empty(0, 5)
    freed: list[int] = []
    tensors = here.views(there.put([picture, empty, picture[:, :1]]), lambda: freed.append(1))
    for slot in (here, there):
        slot.close()
    assert torch.equal(tensors[0], picture)
    assert tensors[0].stride() == picture.stride()
    assert tensors[1].shape == (0, 5)
    assert torch.equal(tensors[2], picture[:, :1])
    tensors[0].add_(1)
    tensors.pop(0)
    assert not freed
    tensors.clear()
    assert freed == [1]


def test_nothing_to_make_is_none_in_time(maker: Maker) -> None:
    assert maker.next(0.01) is None
    assert start_maker(RECIPES, 0).next(0.01) is None


def test_a_killed_worker_is_replaced_and_nothing_is_lost() -> None:
    others = set(children())
    maker = start_maker(RECIPES, 2)
    try:
        first = set(children()) - others
        assert len(first) == 2
        expected, wanted = inline(RECIPES, works(epoch=1)), works(epoch=1)
        for work in wanted:
            maker.submit(work)
        got = [maker.next(WAIT)]
        victim = first.pop()  # whichever it is, it has two batches to make
        victim.kill()
        got += [maker.next(WAIT) for _ in wanted[1:]]
        assert sorted(made.work.sequence for made in got if made) == list(range(len(wanted)))
        for made in got:
            assert made is not None
            assert torch.equal(made.batch[0]["picture"], expected[made.work.sequence].batch[0]["picture"])
        while len(set(children()) - others - {victim}) < 2:
            made_by(maker, works())
    finally:
        maker.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (Deadly(), r"3 workers died making batch 0 of epoch 0 of the train data, samples \(0, 1,.*signal 9"),
        (Unborn(), "3 workers ended before they could begin.*exit code 1"),
    ],
)
def test_workers_that_cannot_live_end_the_run(dataset: Any, says: str) -> None:
    maker = start_maker({"train": Recipe(dataset)}, 1)
    try:
        for work in works():
            maker.submit(work)
        with pytest.raises(RunFailed, match=says):
            drained(maker)
    finally:
        maker.close()


def test_a_dataset_that_cannot_travel_is_named() -> None:
    class Local(Augmented):
        pass

    before = children()
    with pytest.raises(UsageError, match=r"cannot be given to a worker process.*Local.*num_workers=0"):
        start_maker({"train": Recipe(Local())}, 2)
    assert children() == before


def test_auto_makes_do_with_a_thread_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Local(Augmented):
        pass

    maker = start_maker({"train": Recipe(Local(), 7)}, "auto")
    try:
        assert isinstance(maker, ThreadMaker)
        assert "a thread makes the batches: the dataset" in caplog.text
        assert len(made_by(maker, works())) == 12
    finally:
        maker.close()


def test_closing_wakes_whoever_waits() -> None:
    thread = ThreadMaker(RECIPES)
    thread.start()
    for maker in (start_maker(RECIPES, 1), start_maker(RECIPES, 0), thread):
        got: list[Any] = []
        waiting = threading.Thread(target=lambda maker=maker, got=got: got.append(maker.next()))  # type: ignore[misc]
        waiting.start()
        maker.close()
        waiting.join(WAIT)
        assert got == [None]
        maker.close()


def test_a_thread_works_ahead_and_makes_the_same() -> None:
    maker = ThreadMaker({**RECIPES, "val": Recipe(Ragged())})
    maker.start()
    try:
        for mine, theirs in zip(inline(RECIPES, works()), made_by(maker, works()), strict=True):
            assert torch.equal(mine.batch[0]["picture"], theirs.batch[0]["picture"])
        maker.submit(Work("val", 0, 0, (1, 2)))
        with pytest.raises(UsageError, match="do not make one batch"):
            maker.next(WAIT)
        assert maker.next(0.01) is None
    finally:
        maker.close()
    assert "manyhands-worker" not in {thread.name for thread in threading.enumerate()}


def test_how_many_workers() -> None:
    arrays: dict[Phase, Recipe] = {"train": Recipe(create_simple_dataset(10, 2, 2))}
    assert count_workers(arrays, "auto") == 0
    assert count_workers(arrays, 3) == 3
    assert count_workers({"infer": Recipe(Stream())}, "auto") == 1
    assert 1 <= count_workers(RECIPES, "auto") <= 8
    for wrong in (-1, 1.5, True, "all"):
        with pytest.raises(UsageError, match="num_workers is"):
            count_workers(arrays, wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="transfer_dtype is 'int4'"):
        start_maker({"train": Recipe(Augmented(), transfer_dtype="int4")}, 0)


SCRIPT = """
    import torch
    from manyhands.split.jobs import Work
    from manyhands.split.making import start_maker
    from manyhands.split.recipe import Recipe
    maker = None
    {guard}
        maker = start_maker({{"train": Recipe([(torch.ones(2), 1)] * 8)}}, 2)
        maker.submit(Work("train", 0, 0, (0, 1)))
        print(maker.next(60).batch[0].sum().item(), flush=True)
        {then}
"""


def run(folder: Path, guard: str, then: str) -> subprocess.Popen[str]:
    script = folder / "loading.py"
    script.write_text(textwrap.dedent(SCRIPT).format(guard=guard, then=then))
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_script_without_a_guard_runs_with_a_thread_and_says_so(tmp_path: Path) -> None:
    output, errors = run(tmp_path, "if True:", "maker.close()").communicate(timeout=WAIT)
    assert output == "4.0\n", errors
    assert errors.count("loading.py has no `if __name__") == 1


def test_workers_end_with_a_loader_that_is_killed(tmp_path: Path) -> None:
    process = run(tmp_path, 'if __name__ == "__main__":', "input()")
    assert process.stdout is not None
    assert process.stdout.readline() == "4.0\n"
    workers = children(process.pid)
    assert len(workers) == 2
    process.kill()
    process.communicate(timeout=10)
    assert psutil.wait_procs(workers, timeout=20)[1] == []


def test_a_program_that_ends_without_closing_ends_its_workers(tmp_path: Path) -> None:
    process = run(tmp_path, 'if __name__ == "__main__":', "pass")
    output, errors = process.communicate(timeout=WAIT)
    assert (process.returncode, output, errors) == (0, "4.0\n", "")
