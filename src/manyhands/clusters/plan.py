"""How many nodes on which of a cluster's machines: arithmetic on what they have and what a node needs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from manyhands.errors import UsageError
from manyhands.wire.address import is_loopback


@dataclass(frozen=True)
class Wish:
    """How a node is lent: its name, its device, its processes, and how long it waits for its coordinator."""

    name: str
    device: str | None
    num_ranks: int
    patience_seconds: float
    verbose: bool = False


@dataclass(frozen=True)
class Order:
    """What is asked of a cluster: `count` nodes (None: as many as there is room for) of `cpus` processors each, at
    `address` (None: the cluster that this machine is part of).
    """

    count: int | None = None
    cpus: int | None = None
    address: str | None = None


@dataclass(frozen=True)
class Needs:
    """What one node takes of a machine: processors and GPUs."""

    cpus: int
    gpus: int = 0


@dataclass(frozen=True)
class Machine:
    """One machine of a cluster, alive: its id there, its address, and what it has in all."""

    id: str
    address: str
    cpus: float
    gpus: float = 0.0

    def room(self, needs: Needs) -> int:
        """How many nodes it has room for."""
        rooms = [int(self.cpus // needs.cpus)]
        if needs.gpus:
            rooms.append(int(self.gpus // needs.gpus))
        return min(rooms)


def needs_of(device: str | None, cpus: int | None, num_ranks: int, machines: Sequence[Machine]) -> Needs:
    """What a node of `num_ranks` processes takes: a processor each, or `cpus` together; a GPU each where it
    computes on GPUs, which it does by itself in a cluster that has some.

    UsageError for a device that names one of several: a cluster says which.
    """
    if device not in (None, "cpu", "cuda"):
        raise UsageError(
            f"--device {device}: on a cluster a node is given its devices, so say cpu or cuda "
            "(one GPU for each process of --nproc)"
        )
    has_gpus = any(machine.gpus >= 1 for machine in machines)
    on_gpus = device == "cuda" or (device is None and has_gpus)
    return Needs(max(num_ranks, cpus or 1), num_ranks if on_gpus else 0)


def missing(machines: Sequence[Machine], needs: Needs, placed: Mapping[str, int]) -> list[str]:
    """The machines (by id, once a node) that have room for more nodes than are `placed` there."""
    return [
        machine.id for machine in machines for _ in range(machine.room(needs) - placed.get(machine.id, 0))
    ]


def check(machines: Sequence[Machine], needs: Needs, count: int | None, coordinator: str) -> None:
    """UsageError where no node would ever compute.

    ``coordinator`` is the host in the invite: one on loopback is reached from its own machine alone.
    """
    if is_loopback(coordinator) and len({machine.address for machine in machines}) > 1:
        raise UsageError(
            f"the invite says that the coordinator is at {coordinator}, which only its own machine reaches: start it "
            "with an address that the cluster's machines know (CentralServer(advertise=...), serve --advertise)"
        )
    if count is None and not missing(machines, needs, {}):
        most = ", ".join(f"{m.address}: {m.cpus:g} processors, {m.gpus:g} GPUs" for m in machines)
        raise UsageError(
            f"no machine of the cluster has room for a node of {needs.cpus} processors and {needs.gpus} GPUs "
            f"({most}): give --count N to have the cluster grow, or a smaller --cpus or --nproc"
        )
