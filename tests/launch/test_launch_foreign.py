"""Scripts for torchrun and Accelerate's own run unchanged; the example takes its lines literally."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from launching import Launcher
from machines import PYTHON, free_port, two_namespaces
from safetensors.torch import load_file

EXAMPLE = Path(__file__).parents[2] / "examples" / "ddp_launch.py"

TORCHRUN = """
import os
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    model = DDP(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dataset = TensorDataset(torch.randn(32, 4), torch.randn(32, 1))
    sampler = DistributedSampler(dataset)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for inputs, targets in DataLoader(dataset, batch_size=4, sampler=sampler):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
    weights = [torch.empty(1, 4) for _ in range(dist.get_world_size())]
    dist.all_gather(weights, model.module.weight.detach())
    assert all(torch.equal(weights[0], other) for other in weights)
    print("trained", os.environ["LOCAL_RANK"] == os.environ["RANK"])
    dist.destroy_process_group()

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_a_plain_script_for_torchrun(launch: Launcher) -> None:
    done = launch(TORCHRUN, "--standalone", "--nproc-per-node", "2")
    assert (done.code, done.out) == (0, "[0-1] trained True\n")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_accelerates_own_test_script(launch: Launcher) -> None:
    from accelerate.test_utils import scripts

    script = Path(str(scripts.__file__)).parent / "test_script.py"
    done = launch(script, "--nproc", "2")
    assert done.code == 0, done.err
    assert "**Test reinstantiated state**" in done.out  # its last part


def example(*words: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *words], cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_example_trains_resumes_and_reads_a_digit(launch: Launcher) -> None:
    said = example("--epochs", "6", folder=launch.folder)
    assert "4 processes, cpu, 1350 training and 150 validation samples" in said
    accuracies = [float(found) for found in re.findall(r"accuracy ([\d.]+)%", said)]
    assert len(accuracies) == 6
    assert accuracies[-1] >= 90
    said = example("--epochs", "7", "--resume", "--nproc", "2", folder=launch.folder)
    assert "2 processes" in said
    assert re.findall(r"epoch (\d+):", said) == ["6"]
    read = example("--predict", "7", folder=launch.folder)
    assert re.fullmatch(r"test digit 7 is a \d \([\d.]+% sure\); it was written as a \d\n", read)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_examples_two_machine_lines_train_what_one_process_trains(launch: Launcher) -> None:
    alone = launch.folder / "alone"
    alone.mkdir()
    example("--epochs", "2", "--nproc", "1", folder=alone)
    with two_namespaces() as (a, b):
        port = str(free_port())
        words = (
            "--nnodes",
            "2",
            "--master_addr",
            a.address,
            "--master_port",
            port,
            "--epochs",
            "2",
            "--nproc",
            "2",
        )
        folders = [launch.folder / name for name in ("a", "b")]
        machines = []
        for rank, (machine, folder) in enumerate(zip((a, b), folders, strict=True)):
            folder.mkdir()
            machines.append(
                machine.start(PYTHON, str(EXAMPLE), "--node_rank", str(rank), *words, folder=folder)
            )
        for machine in machines:
            _out, err = machine.communicate(timeout=240)
            assert machine.returncode == 0, err
    assert not (folders[1] / "checkpoints").exists()
    one, many = (
        load_file(next(f.glob("checkpoints/ddp/run-0001/step-2/model.safetensors")))
        for f in (alone, folders[0])
    )
    assert max(float((one[name] - many[name]).abs().max()) for name in one) <= 1e-6
