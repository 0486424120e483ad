"""Ray, and a cluster of it: imported when it is used, and reached with a clear error where that fails."""

from __future__ import annotations

import socket
from typing import Any

from manyhands.clusters.plan import Machine
from manyhands.errors import Unreachable, UsageError
from manyhands.observe.text import clean_line
from manyhands.wire.address import parse_address

_GCS_PORT = 6379
_DIAL_SECONDS = 10.0


def load_ray() -> Any:
    """Ray, or UsageError saying how to get it."""
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "--on ray needs Ray, here and on the cluster's machines: pip install 'manyhands[ray]'"
        ) from error
    return ray


def connect(ray: Any, address: str | None) -> None:
    """Reach the cluster at `address` (None: that of this machine), which runs already; Unreachable where none does."""
    where = f"at {address}" if address else "on this machine"
    target = None if address is None else parse_address(address.removeprefix("ray://"), _GCS_PORT)
    try:
        if target is not None:  # Ray itself tries for minutes
            socket.create_connection(target, _DIAL_SECONDS).close()
        ray.init(address=address or "auto", log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:  # what Ray raises here is one of them
        said = clean_line(next(iter(str(error).splitlines()), type(error).__name__))
        raise Unreachable(
            f"no Ray cluster answers {where} ({said}): start it (`ray start --head`), run this on one of its machines, "
            "or give --address HOST:PORT"
        ) from error


def machines_of(ray: Any) -> list[Machine]:
    """The machines of the cluster that are alive."""
    return [
        Machine(
            node["NodeID"],
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def bound_to(machine: str) -> Any:
    """Ray's word for: on this machine or nowhere."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(machine, soft=False)
