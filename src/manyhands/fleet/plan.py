"""Who computes which leaves: pure arithmetic on speeds, the file to read before the lease machine.

All nodes should finish together, so a node's run of leaves is in proportion to its speed. Every delivered
subtree costs a gradient's bytes, so among plans that finish equally early the one with few, large
subtrees is taken. Nothing here knows a node, a lease or the time.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from manyhands.fleet.tree import cover

# Two makespans this close are the same one, computed along different roads.
_EQUAL = 1.0 + 1e-9


def share(
    num_leaves: int, seconds_per_leaf: Sequence[float], delivery_seconds: float = 0.0, first: int = 0
) -> list[range]:
    """Contiguous runs of the leaves `first`, `first` + 1, …, one run a node, in the nodes' order.

    A node with an empty run stands by. `seconds_per_leaf` are positive; list the fastest first, so that
    the slowest are the ones left out. No plan of whole leaves ends earlier when deliveries are free;
    with `delivery_seconds` > 0 a little more computing is accepted where it saves deliveries.
    """
    if not seconds_per_leaf:
        return []
    makespan = _shortest_makespan(num_leaves, seconds_per_leaf)
    plan = _runs_within(makespan, num_leaves, seconds_per_leaf, first)
    if delivery_seconds <= 0.0:
        return plan
    relaxed = _runs_within(makespan + delivery_seconds, num_leaves, seconds_per_leaf, first)
    return min(plan, relaxed, key=lambda runs: _cost(runs, seconds_per_leaf, delivery_seconds))


def _shortest_makespan(num_leaves: int, seconds: Sequence[float]) -> float:
    """Seconds until the last node ends, if the leaves are shared as evenly as whole leaves allow."""
    ideal = num_leaves / sum([1.0 / s for s in seconds])
    counts = [int(ideal / s) for s in seconds]
    missing = num_leaves - sum(counts)
    makespan = max([c * s for c, s in zip(counts, seconds, strict=True)])
    if missing > 0:
        ends = [(c + 1) * s for c, s in zip(counts, seconds, strict=True)]
        makespan = max(makespan, _last_of_smallest(missing, ends, seconds))
    return makespan


def _last_of_smallest(missing: int, ends: list[float], seconds: Sequence[float]) -> float:
    """Give `missing` leaves one by one to whoever ends earliest with one more; the last one's end."""
    queue = list(zip(ends, seconds, strict=True))
    heapq.heapify(queue)
    end = 0.0
    for _ in range(missing):
        end, each = queue[0]
        heapq.heapreplace(queue, (end + each, each))
    return end


def _runs_within(makespan: float, num_leaves: int, seconds: Sequence[float], first: int) -> list[range]:
    """Runs that end by `makespan`, their boundaries as aligned in the tree as that allows."""
    limit = makespan * _EQUAL
    room_of = [int(limit / s) for s in seconds]
    room = sum(room_of)
    at, end = first, first + num_leaves
    plan = []
    for own in room_of:
        room -= own
        low, high = max(at + 1, end - room), min(at + own, end)
        stop = at if high < low else end if high == end else _most_aligned(low, high)
        plan.append(range(at, stop))
        at = stop
    return plan


def _most_aligned(low: int, high: int) -> int:
    """The number in [low, high] that is divisible by the highest power of two; 1 <= low <= high."""
    differing = (low - 1) ^ high
    return high & -(1 << (differing.bit_length() - 1))


def _cost(plan: list[range], seconds: Sequence[float], delivery_seconds: float) -> tuple[float, int]:
    """When the last node has delivered, then how many subtrees all nodes deliver."""
    depth = max(run.stop for run in plan).bit_length()
    deliveries = [len(cover(run, depth)) for run in plan]
    ends = [
        len(run) * s + count * delivery_seconds
        for run, s, count in zip(plan, seconds, deliveries, strict=True)
    ]
    return max(ends), sum(deliveries)


def relief(
    tail: Sequence[int],
    current_seconds: float,
    slow_seconds: float,
    quick_seconds: float,
    delivery_seconds: float,
) -> tuple[int, float]:
    """How many of a busy node's last leaves another should take over, and the seconds this gains.

    The busy node needs `current_seconds` for the leaf in hand, then `slow_seconds` for each leaf of
    `tail`; the other one `quick_seconds` a leaf and a delivery of its own.
    """
    alone = current_seconds + len(tail) * slow_seconds
    balanced = int((alone - delivery_seconds) / (slow_seconds + quick_seconds))

    def cost(taken: int) -> tuple[float, int]:
        stays = current_seconds + (len(tail) - taken) * slow_seconds
        boundary = tail[-taken] if taken else 0
        return max(stays, taken * quick_seconds + delivery_seconds), -(boundary & -boundary)

    choices = [taken for taken in range(balanced - 1, balanced + 3) if 0 < taken <= len(tail)]
    if not choices:
        return 0, 0.0
    best = min(choices, key=cost)
    gain = alone - cost(best)[0]
    return (best, gain) if gain > 0.0 else (0, 0.0)
