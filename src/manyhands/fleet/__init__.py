"""The control plane: roster and leases as a pure machine, its messages, both ends of a stream."""
