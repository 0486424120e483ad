"""The compute child's first lines: limits, the channel, and only then torch.

Started as ``python -m manyhands.pool.lending.child ORDER`` by `process`, with an emptied environment and no
descriptor but its channel and its log.
"""

from __future__ import annotations

import sys
import warnings

import msgspec

from manyhands.pool.lending import limits
from manyhands.pool.lending.channel import HungUp, adopt
from manyhands.pool.lending.words import FROM_AGENT, Kind, Order, pack


def main() -> int:
    """Compute until the agent hangs up or the run ends; the process's exit code."""
    order = msgspec.json.decode(sys.argv[1], type=Order)
    limits.settle(order.cpus, order.num_ranks)
    limits.die_with(order.descriptors[0])
    channel = adopt(order.descriptors, FROM_AGENT)
    warnings.simplefilter("ignore")
    try:
        from manyhands.pool.lending.compute import compute

        channel.send(Kind.OUTCOME, pack(compute(channel, order)))
    except HungUp:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
