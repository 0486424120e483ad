"""A model of 10M parameters over slow links: seconds a step of a pool of two nodes against DDP over Gloo.

Both nodes (and both ranks) have links of 100 Mbit/s and 40 ms to anywhere; the coordinator's own link is as wide as
``--hub-mbit`` says. Run as root: ``python benchmarks/pool_shaped.py``; ``--compression none`` sends fp32.
"""

from __future__ import annotations

import argparse
import os
import statistics

import torch
from common.lines import report
from common.links import Host, hosts
from common.sides import compare
from common.task import Task

WIDTHS = (512, 2048, 2048, 2048, 256, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="steps a turn")
    parser.add_argument("--rows", type=int, default=256, help="rows of a leaf")
    parser.add_argument("--mbit", type=float, default=100.0, help="of each node's link, each way")
    parser.add_argument("--hub-mbit", type=float, default=1000.0, help="of the coordinator's link, each way")
    parser.add_argument("--rtt-ms", type=float, default=40.0, help="round trip between any two hosts")
    parser.add_argument("--compression", choices=("int8", "none"), default="int8", help="what the pool sends")
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = Task(WIDTHS, given.rows, batches=4)
    compression = None if given.compression == "none" else given.compression
    delay = given.rtt_ms / 4e3  # a round trip passes four ends
    hub = Host(f"mh{os.getpid()}-hub", 1, given.hub_mbit, delay)
    nodes = [Host(f"mh{os.getpid()}-{number}", number, given.mbit, delay) for number in (2, 3)]
    with hosts(hub, *nodes):
        pool, ddp, leaves = compare(
            task,
            given.turns,
            given.steps,
            warm_steps=1,
            node_hosts=(nodes[0].name, nodes[1].name),
            host=hub.name,
            ip=hub.address,
            compression=compression,
        )
    setup = (
        f"{task.num_parameters():,} parameters fp32, sent as {given.compression}, 2 nodes, 2 leaves of {given.rows} "
        f"rows; links of {given.mbit:g} Mbit/s, the coordinator's {given.hub_mbit:g}, round trip {given.rtt_ms:g} ms, "
        f"TLS; {given.turns} turns of {given.steps} steps in alternation; ours: {pool}, leaves by node {leaves}; "
        f"theirs (DDP, Gloo, the same links, no TLS): {ddp}"
    )
    ours, theirs = (statistics.median(side.milliseconds) / 1e3 for side in (pool, ddp))
    report("pool_shaped", ours, theirs, "s a step", False, setup)


if __name__ == "__main__":
    main()
