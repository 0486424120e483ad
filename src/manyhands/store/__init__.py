"""What survives a crash: the journal of a run, and its checkpoints.

`journal` is the ledger (who computed which samples, once), `checkpoint` the state to go on from. The two
meet in one number: a checkpoint names the journal position it belongs to, and resuming from it voids the
rows behind that position. Nothing here knows of nodes' sockets, of leases' rules or of training.

Modules are imported by name (`manyhands.store.journal`), so that reading a ledger never loads torch.
"""
