"""``manyhands launch --on ray``: the machines of a Ray cluster in the place of ``--hosts``.

A launch on several machines needs their names and a way to run one command on each. Ray has both, so the command
line is rewritten and nothing else is new: one console, the failing rank's traceback last, the same exit codes::

    --on ray --count 2 --nproc 4 train.py
    --hosts 10.0.0.1,10.0.0.2 --nproc 4 --ssh "python -m manyhands.clusters.rayshell ..." train.py
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from manyhands.clusters.plan import Machine
from manyhands.clusters.rayconnect import connect, load_ray, machines_of
from manyhands.errors import UsageError
from manyhands.launch.options import CLUSTER_OPTIONS, parser


def launch(arguments: Sequence[str]) -> int:
    """Run a command line on a Ray cluster's machines; the exit code of the rank that failed first."""
    from manyhands.launch.launcher import launch as run

    return run(rewritten(arguments))


def rewritten(arguments: Sequence[str]) -> list[str]:
    """The command line with the cluster's machines as its hosts. UsageError, Unreachable."""
    given = parser().parse_args(list(arguments))
    if given.on is None:
        return list(arguments)
    if given.hosts or given.hostfile:
        raise UsageError("--on ray takes the cluster's machines: leave out --hosts and --hostfile")
    script_at = len(arguments) - len(given.training_script_args) - 1
    kept = without(arguments[:script_at], CLUSTER_OPTIONS)
    ray = load_ray()
    connect(ray, given.address)
    try:
        machines = chosen(machines_of(ray), given.count)
    finally:
        ray.shutdown()
    names = names_of(machines)
    shell = [sys.executable, "-m", "manyhands.clusters.rayshell"]
    if given.address:
        shell += ["--address", given.address]
    for name, machine in zip(names, machines, strict=True):
        shell += [
            "--machine",
            f"{name}={machine.id}:{_cpus(machine, given.nproc_per_node)}:{int(machine.gpus)}",
        ]
    return ["--hosts", ",".join(names), "--ssh", shlex.join(shell), *kept, *arguments[script_at:]]


def names_of(machines: Sequence[Machine]) -> list[str]:
    """What people see of each: its address, where that tells it from the others."""
    addresses = [machine.address for machine in machines]
    return [
        address if addresses.count(address) == 1 and ":" not in address else f"ray-{number}"
        for number, address in enumerate(addresses, 1)
    ]


def _cpus(machine: Machine, nproc: str | None) -> int:
    """What is reserved there: a processor a rank, or all where the machine says how many ranks."""
    wanted = int(nproc) if nproc is not None and nproc.isdigit() else int(machine.cpus)
    return min(wanted, int(machine.cpus))


def chosen(machines: Sequence[Machine], count: int | None) -> list[Machine]:
    """The machines with the most processors, `count` of them (None: all that have any)."""
    able = sorted((m for m in machines if m.cpus >= 1), key=lambda m: (-m.gpus, -m.cpus, m.id))
    if count is not None and not 1 <= count <= len(able):
        raise UsageError(f"--count {count}: the cluster has {len(able)} machines with processors")
    if not able:
        raise UsageError("no machine of the Ray cluster has a processor to give")
    return able[:count]


def without(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """The words without these options and their values."""
    kept, skips = [], False
    for word in words:
        if skips or word in options:
            skips = not skips
        elif not word.startswith(tuple(f"{option}=" for option in options)):
            kept.append(word)
    return kept
