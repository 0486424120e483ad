"""Leases granted and completed a second by the pure lease machine, one core, no network and no disk.

    python benchmarks/coordinator_pure.py [--nodes 50] [--leaves 50] [--steps 400]

A lease here is all that one costs: its share of opening the step, the grant, a receipt for each leaf, one
answer a subtree with its merge, and the step's completion. Prints one JSON line; `theirs` is the target.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from manyhands.fleet.events import Answer, Grant, Join, Open, Receipt
from manyhands.fleet.leases import LeaseMachine

TARGET_PER_SECOND = 100_000


def one_round(
    machine: LeaseMachine, first_step: int, steps: int, leaves: int, receipts: bool
) -> tuple[float, int]:
    """Seconds inside the machine, and the leases it completed in that time."""
    granted, spent, now = 0, 0.0, float(first_step)
    for step in range(first_step, first_step + steps):
        start = time.perf_counter()
        out = machine.apply(Open(step, leaves), now)
        spent += time.perf_counter() - start
        leases = [i.lease for i in out if isinstance(i, Grant)]
        depth = (leaves - 1).bit_length()
        events = []
        for lease in leases:
            for subtree in lease.subtrees:
                shift = depth + 1 - subtree.bit_length()
                if receipts:
                    first = (subtree << shift) - (1 << depth)
                    mine = range(first, min(first + (1 << shift), leaves))
                    events += [Receipt(lease.key, lease.incarnation, lease.id, leaf, 0.001) for leaf in mine]
                events.append(Answer(lease.key, lease.incarnation, step, lease.id, subtree, 7))
        start = time.perf_counter()
        for event in events:
            machine.apply(event, now)
        spent += time.perf_counter() - start
        granted += len(leases)
        if machine.is_open:
            raise RuntimeError(f"step {step} did not complete")
        now += 0.01
    return spent, granted


def measure(nodes: int, leaves: int, steps: int, receipts: bool, repeats: int = 5) -> float:
    """The median over repeats of leases a second."""
    machine = LeaseMachine(1)
    for number in range(nodes):
        machine.apply(Join(f"node-{number}"), 0.0)
    rates = []
    for repeat in range(repeats):
        spent, granted = one_round(machine, repeat * steps, steps, leaves, receipts)
        rates.append(granted / spent)
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--leaves", type=int, default=50)
    parser.add_argument("--steps", type=int, default=400)
    asked = parser.parse_args()
    ours = measure(asked.nodes, asked.leaves, asked.steps, receipts=True)
    bare = measure(asked.nodes, asked.leaves, asked.steps, receipts=False)
    print(
        json.dumps(
            {
                "name": "coordinator_pure",
                "ours": round(ours),
                "theirs": TARGET_PER_SECOND,
                "ratio": round(ours / TARGET_PER_SECOND, 3),
                "unit": "leases/s",
                "higher_is_better": True,
                "setup": f"{asked.nodes} nodes, {asked.leaves} leaves a step, a receipt a leaf, one core; "
                f"theirs is the target; {bare:.0f} without receipts",
            }
        )
    )


if __name__ == "__main__":
    main()
