"""A node of several processes on one machine: its ranks share each lease, and the coordinator hears of one node.

::

    coordinator ══ agent ── rank 0 ──┬── rank 1      a lease comes, the step's weights and data with it
                              ▲      ├── rank 2      each rank takes a run of its leaves
                              │      └── rank 3
                              └── partial sums       added in the step's tree order, delivered once

Rank 0 is the compute child that there is anyhow. The others are compute children too, which take rank 0 for their
coordinator: the same messages over the same kind of channel. `shares` decides who computes what; `rank` is
rank 0's handle on another; `group` shares a lease and adds what comes.
"""
