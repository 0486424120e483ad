"""A Ray cluster of several machines on this one: started and killed by orders, in a process of its own.

Run as a program it reads orders from standard input: ``kill N`` kills machine N (SIGKILL of its raylet), ``add N``
adds one of N processors, anything else ends the cluster. Ray's own imports warn, which a test session takes for an
error.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RayMachines:
    """The orders' side; `logs` is the folder in which Ray logs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address, logs = self._hear().split()
        self.logs = Path(logs)

    def kill(self, number: int) -> None:
        """Kill a machine; returns when it is gone."""
        self._tell(f"kill {number}")

    def add(self, cpus: int) -> None:
        """One more machine; returns when it is part of the cluster."""
        self._tell(f"add {cpus}")

    def _tell(self, order: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        self._hear()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the Ray cluster did not start")
        return line


@contextmanager
def ray_machines(*cpus: int) -> Iterator[RayMachines]:
    """A cluster of machines with so many processors each."""
    with tempfile.TemporaryDirectory(prefix="mh-ray-") as folder:  # short: sockets lie there
        process = subprocess.Popen(
            [sys.executable, __file__, folder, *map(str, cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            yield RayMachines(process)
        finally:
            process.communicate("end\n", timeout=60)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    folder, *cpus = sys.argv[1:]
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": int(cpus[0]), "temp_dir": folder, **small}
    )
    machines = [cluster.head_node, *(cluster.add_node(num_cpus=int(own), **small) for own in cpus[1:])]
    say(f"{cluster.address} {machines[0].get_logs_dir_path()}")
    for line in sys.stdin:
        word, *number = line.split()
        if word == "kill":
            cluster.remove_node(machines[int(number[0])], allow_graceful=False)
        elif word == "add":
            machines.append(cluster.add_node(num_cpus=int(number[0]), **small))
        else:
            break
        say("done")
    cluster.shutdown()


if __name__ == "__main__":
    main()
