"""``manyhands verify``: a user's own server or pipeline, by nodes and by one process, and what differs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from manyhands.cli import console
from manyhands.cli.owner import JsonOption
from manyhands.cli.serve import TargetArgument
from manyhands.errors import RunFailed


def verify(
    target: TargetArgument,
    nodes: Annotated[int, typer.Option(min=1, max=64, help="How many node processes to start.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="How many steps to compare after.")] = 20,
    as_json: JsonOption = False,
) -> int:
    """Train TARGET by nodes and by one process; compare every bit.

    A function of `workers` that returns (boss, loss, batches) is a pipeline's.
    """
    from manyhands.clock import SystemClock
    from manyhands.testing.comparison import compare

    clock = SystemClock()
    started = clock.monotonic()
    console.tell(f"training {steps} steps of {target} with {nodes} nodes here, then in this process alone")
    found = compare(target, nodes, steps)
    outcome = {
        "bit_identical": found.bit_identical,
        "largest_difference": found.largest_difference,
        "first_difference": found.first_difference,
        "numeric_class": found.numeric_class,
        "steps": found.steps,
        "nodes": found.nodes,
        "weights_sha256": found.weights_sha256,
        "reference_sha256": found.reference_sha256,
        "seconds": round(clock.monotonic() - started, 2),
    }
    if as_json:
        console.show_json(outcome)
    else:
        _tell(outcome)
    if found.nodes < nodes:
        console.tell(f"only {found.nodes} of {nodes} nodes joined before the last step: give more --steps")
    if not found.bit_identical:
        raise RunFailed(
            f"{found.first_difference} is the first tensor with other bits; does the target make the same "
            "data each time it is loaded, and does its model draw random numbers from torch only?"
        )
    return 0


def _tell(outcome: dict[str, Any]) -> None:
    same = "every bit is the same" if outcome["bit_identical"] else "the weights differ"
    console.show(
        f"  {same} after {outcome['steps']} steps {_by(outcome['nodes'])}\n"
        f"  largest difference  {outcome['largest_difference']:g}\n"
        f"  first difference    {outcome['first_difference'] or 'none'}\n"
        f"  numeric class       {outcome['numeric_class']}"
    )


def _by(nodes: int) -> str:
    return "by 1 node" if nodes == 1 else f"by {nodes} nodes"
