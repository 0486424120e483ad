"""A pool or a pipeline against one process, for any target: what ``manyhands verify`` runs, as a function.

The coordinator's first checkpoint gives the reference its starting weights, and its last one is compared, so
that only what training did can differ. Both load the target, under the same seed; one that makes other data
each time it is loaded differs for that reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manyhands.errors import RunFailed
from manyhands.pool.target import (
    Parts,
    change_options,
    find_object,
    load_server,
    make_quiet,
    parts_of,
    run_reference,
)
from manyhands.store import checkpoint
from manyhands.store.runs import latest_run, run_folder
from manyhands.testing.cluster import LocalCluster
from manyhands.testing.pipelines import makes_pipeline, train_both
from manyhands.training.seeds import seed_generators
from manyhands.training.state import ModelState, named_sha256


@dataclass(frozen=True)
class Comparison:
    """What nodes and one process made of the same job.

    ``largest_difference`` is over all parameters and buffers (NaN where one side has NaN and the other not);
    ``first_difference`` names the first tensor, in the model's order, with other bits.
    """

    nodes: int
    steps: int
    numeric_class: str
    largest_difference: float
    first_difference: str | None
    weights_sha256: str
    reference_sha256: str

    @property
    def bit_identical(self) -> bool:
        """Whether every bit is the same."""
        return self.weights_sha256 == self.reference_sha256


def compare(
    target: str,
    nodes: int = 2,
    steps: int = 20,
    *,
    arguments: Mapping[str, Any] | None = None,
    timeout_seconds: float = 600.0,
) -> Comparison:
    """Train the first `steps` steps of `target` with node or worker processes, and again here; what differs.

    A target is a server's (see `pool.target`), or a function of ``workers`` (see `testing.pipelines`).

    Callbacks, logs, validation and early stopping of the server are left out. Raises what the run raises.
    """
    seed_generators(0)
    if makes_pipeline(maker := find_object(target)):
        return _compare_pipeline(maker, nodes, steps)
    server = load_server(target, arguments)
    own = parts_of(server).options.max_steps
    options = {"max_steps": steps if own is None else min(steps, own), "numerics": "strict"}
    with LocalCluster(target, nodes, arguments=arguments, options=options, quiet=True, holds=True) as cluster:
        report = cluster.wait(timeout_seconds)
        first, last = _first_and_last(cluster.checkpoint_dir)
        make_quiet(server)
        change_options(server, **options)
        parts = parts_of(server)
        _put(parts, checkpoint.load(first).tensors)
        reference = _reference(parts)
        pool = checkpoint.load(last).tensors
    here = ModelState(parts.model).tensors()
    largest, name = difference({n: pool[n] for n in here}, here)
    classes = ", ".join(sorted(report["numeric_classes"]))
    return Comparison(
        report["nodes_seen"], report["steps"], classes, largest, name, report["weights_sha256"], reference
    )


def _compare_pipeline(maker: Any, num_workers: int, steps: int) -> Comparison:
    sides = train_both(maker, num_workers, steps)
    largest, name = difference(sides.workers, sides.alone)
    return Comparison(
        num_workers,
        sides.steps,
        ", ".join(sorted(sides.devices)),
        largest,
        name,
        named_sha256(sides.workers),
        named_sha256(sides.alone),
    )


def difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[float, str | None]:
    """The largest absolute difference of tensors of the same names, and the first with other bits."""
    largest, first = 0.0, None
    for name, mine in ours.items():
        other = theirs[name].detach().cpu()
        if mine.contiguous().view(-1).view(torch.uint8).equal(other.contiguous().view(-1).view(torch.uint8)):
            continue
        first = first or name
        gap = float((mine.double() - other.double()).abs().max())
        largest = gap if not gap <= largest else largest
    return largest, first


def _reference(parts: Parts) -> str:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the cluster's processes
    try:
        return run_reference(parts).weights_sha256
    finally:
        torch.set_num_threads(before)


def _first_and_last(checkpoint_dir: Path) -> tuple[Path, Path]:
    run = latest_run(checkpoint_dir)
    found = sorted(run_folder(checkpoint_dir, run or "none").glob("step-*"), key=_step)
    if len(found) < 2 or _step(found[0]) != 0:
        raise RunFailed(f"the run left {len(found)} checkpoints in {checkpoint_dir}, not its first and last")
    return found[0], found[-1]


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _put(parts: Parts, tensors: Mapping[str, Tensor]) -> None:
    here = ModelState(parts.model, parts.criterion).tensors()
    with torch.no_grad():
        for name, value in tensors.items():
            here[name].copy_(value)
