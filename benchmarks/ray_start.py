"""Two nodes on a Ray cluster, from the command to the first gradient of both, against Ray Train's two workers.

Both sides start a new process against the same running cluster of two machines (on this one), in turns. Ours is
``manyhands join --on ray --count 2`` until each node has computed a micro-batch; theirs a script with a
TorchTrainer over two processors until each worker has done a backward pass of the same model. The coordinator runs
before, as Ray's own head does. Run: ``python benchmarks/ray_start.py [--turns N]``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from common.lines import report
from torch import nn
from torch.utils.data import TensorDataset

from manyhands.pool.server import CentralServer
from manyhands.settings.children import child_environment
from manyhands.testing import LocalCluster
from manyhands.testing.process import wait_for

NUM_WORKERS = 2
WAIT_SECONDS = 180.0

RAY_TRAIN = """
import sys
from pathlib import Path

import ray
import ray.train
from ray.train.torch import TorchTrainer, prepare_model


def work(config):
    import torch

    model = prepare_model(torch.nn.Linear(8, 2))
    torch.nn.functional.cross_entropy(model(torch.randn(8, 8)), torch.zeros(8, dtype=torch.long)).backward()
    Path(config["folder"], str(ray.train.get_context().get_world_rank())).touch()


if __name__ == "__main__":
    address, folder, workers = sys.argv[1:]
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    scaling = ray.train.ScalingConfig(num_workers=int(workers), resources_per_worker={"CPU": 1})
    run = ray.train.RunConfig(storage_path=folder + "-results")
    TorchTrainer(work, train_loop_config={"folder": folder}, scaling_config=scaling, run_config=run).fit()
"""


def job() -> CentralServer:
    """The same model, without an end."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(512, 8), torch.zeros(512, dtype=torch.long))
    return CentralServer(nn.Linear(8, 2), data, batch_size=32, micro_batches=4, epochs=1_000_000)


@contextmanager
def machines() -> Iterator[str]:
    """A Ray cluster of two machines of two processors each; its address."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": NUM_WORKERS, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    cluster.add_node(**small)
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def ours(address: str) -> float:
    """Seconds until every node has computed something; then the run is stopped, and the command ends."""
    with LocalCluster(f"{__file__}:job", nodes=0) as cluster:
        command = [sys.executable, "-m", "manyhands", "-q", "join", "--on", "ray", "--address", address]
        env = child_environment({"MANYHANDS_STATE_DIR": str(cluster.state_dir)})
        start = time.perf_counter()
        joined = subprocess.Popen([*command, "--count", str(NUM_WORKERS)], env=env, stdout=subprocess.DEVNULL)
        try:
            cluster.wait_status(
                lambda status: sum(node["samples"] > 0 for node in status["nodes"]) == NUM_WORKERS,
                WAIT_SECONDS,
                "nodes at work",
            )
            return time.perf_counter() - start
        finally:
            joined.terminate()
            joined.wait()


def theirs(address: str, folder: Path) -> float:
    """Seconds until every worker has computed something; then the script ends by itself."""
    script, signs = folder / "train.py", folder / "signs"
    script.write_text(RAY_TRAIN)
    signs.mkdir()
    start = time.perf_counter()
    trained = subprocess.Popen(
        [sys.executable, str(script), address, str(signs), str(NUM_WORKERS)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: len(list(signs.iterdir())) == NUM_WORKERS, WAIT_SECONDS, "workers at work")
        return time.perf_counter() - start
    finally:
        trained.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    own, other = [], []
    with machines() as address, tempfile.TemporaryDirectory() as folder:
        for turn in range(given.turns + 1):  # the first of each finds Ray's processes and files cold
            place = Path(folder) / str(turn)
            place.mkdir()
            own.append(ours(address))
            other.append(theirs(address, place))
    setup = (
        f"{NUM_WORKERS} nodes on a Ray cluster of 2 machines on this one, from the command to the first gradient of "
        f"every node, {given.turns} turns in alternation after one that does not count; ours {min(own[1:]):.2f} to "
        f"{max(own[1:]):.2f} s; theirs, a TorchTrainer's workers, {min(other[1:]):.2f} to {max(other[1:]):.2f} s"
    )
    report("ray_start", statistics.median(own[1:]), statistics.median(other[1:]), "s", False, setup)


if __name__ == "__main__":
    main()
