"""Split mode: CPU machines load and preprocess, a GPU machine trains, validates or infers.

Read `plan` and `ledger` first: the order of an epoch, and which batch is with whom. `loader`, `trainer` and
`remote` are the three things a user holds.
"""
