"""Nodes on a cluster's machines, where the cluster has an engine that places processes: Ray.

A node dials out and needs nothing but its invite, so Slurm and Kubernetes just run ``manyhands join``. Ray is
asked to: `plan` decides how many nodes on which of its machines, `rayjoin` has them placed and looks after them,
`lender` is what runs there. Ray itself is imported only when it is used.
"""
