"""Workers that make batches: processes over shared memory, a thread, or the caller itself.

:func:`~manyhands.split.making.starting.start_maker` chooses. `assembler` makes one batch and is the same everywhere;
`plan` decides which worker makes what, and is pure. Nothing here knows the network or who trains on a batch.
"""

from manyhands.split.making.starting import start_maker

__all__ = ["start_maker"]
