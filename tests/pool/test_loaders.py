"""Worker processes that load: the same leaves as without them, and what goes wrong in them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.data import Dataset

from manyhands.errors import BadSample, RunFailed, UsageError
from manyhands.pool.data import Feeder, LeafLoader, Source
from manyhands.pool.plan import RunPlan
from manyhands.tensors import frame
from manyhands.training.objective import Objective

PLAN = RunPlan(20, 8, 4, 1)


class Random(Dataset[Any]):
    """Random items; the last number is the process that made them."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([index, torch.rand(1).item()]), os.getpid()


class Bad(Random):
    def __getitem__(self, index: int) -> Any:
        if index in (3, 7):
            raise OSError(f"file {index} is torn")
        return super().__getitem__(index)


class Deadly(Random):
    def __getitem__(self, index: int) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def make() -> Iterator[Any]:
    made: list[Feeder] = []

    def feeder(dataset: Any, **options: Any) -> Feeder:
        made.append(Feeder(PLAN, LeafLoader(Source(dataset, None, 0), Objective(), True), **options))
        made[-1].start()
        return made[-1]

    yield feeder
    for one in made:
        one.close()


def rows(feeder: Feeder) -> list[Any]:
    data = [feeder.step(step).result(60) for step in range(PLAN.num_steps)]
    return [frame.decode(leaf.frame) for step in data for leaf in step.leaves if leaf.frame is not None]


def test_workers_load_the_same_leaves_elsewhere(make: Any) -> None:
    here, there = rows(make(Random())), rows(make(Random(), num_workers=2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(here, there, strict=True))
    assert {int(pid) for _, pids in here for pid in pids} == {os.getpid()}
    assert os.getpid() not in {int(pid) for _, pids in there for pid in pids}


def test_a_bad_item_is_named_across_processes(make: Any) -> None:
    with pytest.raises(BadSample, match=r"dataset\[[37]\] raised OSError: file [37] is torn") as caught:
        rows(make(Bad(), num_workers=1))
    assert caught.value.index in (3, 7)
    data = make(Bad(), num_workers=1, on_bad_sample="quarantine")
    found: dict[int, str] = {}
    for step in range(PLAN.num_steps):
        found |= data.step(step).result(60).quarantined
    assert found == {3: "file 3 is torn", 7: "file 7 is torn"}


def test_a_worker_that_dies_ends_the_run_with_a_word(make: Any) -> None:
    with pytest.raises(RunFailed, match="a process that loads data died"):
        rows(make(Deadly(), num_workers=1))


def test_a_dataset_that_cannot_travel_is_named(make: Any) -> None:
    class Local(Random):
        pass

    with pytest.raises(UsageError, match=r"cannot be given to a worker process.*num_workers=0"):
        rows(make(Local(), num_workers=1))


def test_a_queue_of_few_leaves_prepares_fewer_steps(make: Any) -> None:
    small = Feeder(PLAN, LeafLoader(Source(Random(), None, 0), Objective(), True), queue_size=4)
    small.start()
    small.look_ahead(0)
    assert set(small._pending) == {1}
    small.close()


SCRIPT = """
    import sys
    import torch
    from torch.utils.data import TensorDataset
    from manyhands import CentralServer
    server = CentralServer(torch.nn.Linear(2, 2), TensorDataset(torch.zeros(8, 2), torch.zeros(8).long()), port=0,
                           num_workers=2, checkpoint_dir=sys.argv[1])
    {guard}
        server.start(block=False)
        print(server.address, flush=True)
        {then}
"""


def run(folder: Path, guard: str, then: str) -> subprocess.Popen[str]:
    script = folder / "server.py"
    script.write_text(textwrap.dedent(SCRIPT).format(guard=guard, then=then))
    return subprocess.Popen(
        [sys.executable, str(script), str(folder / "checkpoints")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MANYHANDS_STATE_DIR": str(folder / "state")},
    )


def test_a_script_without_a_guard_runs_with_threads_and_says_so(tmp_path: Path) -> None:
    process = run(tmp_path, "if True:", "server.stop(); server.wait()")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "num_workers are threads here: server.py has no `if __name__" in errors


def test_workers_end_with_a_coordinator_that_is_killed(tmp_path: Path) -> None:
    process = run(tmp_path, 'if __name__ == "__main__":', "server.wait()")
    assert process.stdout is not None
    while (line := process.stdout.readline()) and not line.startswith("("):
        pass
    parent = psutil.Process(process.pid)
    while len(children := [c for c in parent.children() if "spawn_main" in " ".join(c.cmdline())]) < 2:
        assert process.poll() is None
    process.kill()
    process.communicate(timeout=10)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
