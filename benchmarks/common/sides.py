"""Two sides that take turns: a pool of a coordinator and two nodes, and DDP over Gloo with two processes.

All five processes stay alive; a side computes while the other waits for its turn, so both meet the same
machine. A turn is a number of optimizer steps; each step's end is stamped where its weights are final.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any, Protocol

from common.cast import Cast
from common.ddp import Hosts, Ranks
from common.lines import spread
from common.pool import Pool
from common.task import Task


class Rival(Protocol):
    """Whatever trains in turns."""

    def turn(self, steps: int) -> tuple[list[float], float]:
        """Milliseconds of each step, and the loss of the last."""
        ...

    def processor_seconds(self) -> float:
        """Of all its processes so far."""
        ...


@dataclass
class Side:
    """What one side took: milliseconds of each step, processor milliseconds a step of all its processes; and what
    a node of the pool sends and receives a lease.
    """

    milliseconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    loss: float = 0.0
    sent_bytes: float = 0.0
    received_bytes: float = 0.0

    def take_turn(self, rival: Rival, steps: int, warm_steps: int) -> None:
        """A turn of `steps` steps that count, after `warm_steps` that do not."""
        rival.turn(warm_steps)
        before = rival.processor_seconds()
        gaps, self.loss = rival.turn(steps)
        self.processor.append((rival.processor_seconds() - before) / steps * 1e3)
        self.milliseconds += gaps

    def __str__(self) -> str:
        return f"{spread(self.milliseconds)}, processor time {statistics.median(self.processor):.2f} a step"


def compare(
    task: Task, turns: int, steps: int, warm_steps: int, node_hosts: Hosts = (None, None), **options: Any
) -> tuple[Side, Side, list[int]]:
    """The pool and DDP over `turns` turns of `steps` steps each, and the leaves that each node computed.

    `warm_steps` before each turn are left out: a side that waited has cold caches. `options` are Pool's.
    RuntimeError where the two sides did not train the same.
    """
    pool_side, ddp_side = Side(), Side()
    with Cast() as cast:
        ranks, pool = Ranks(cast, task, node_hosts), Pool(cast, task, node_hosts=node_hosts, **options)
        ranks.turn(pool.warm_up(warm_steps))
        for turn in range(turns):
            pool_side.take_turn(pool, steps, warm_steps)
            ddp_side.take_turn(ranks, steps, warm_steps)
            ours, theirs = pool_side.loss, ddp_side.loss
            if abs(ours - theirs) > 0.01 * abs(theirs) + 1e-4:
                raise RuntimeError(
                    f"turn {turn}: the pool's loss is {ours}, DDP's {theirs}: not the same training"
                )
        ranks.end()
        leaves = pool.end()
    pool_side.sent_bytes = statistics.median(sent for sent, _ in pool.traffic)
    pool_side.received_bytes = statistics.median(received for _, received in pool.traffic)
    return pool_side, ddp_side, leaves
