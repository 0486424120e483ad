"""A trainer's end of one job: what its loaders' streams bring, and what the trainer takes of it.

Read `account` first, which is pure: who was leased what, what has come, what is to be said. `desk` puts it under a
lock, `walk` is the trainer's way through the batches, and `job` what streams and trainer call.
"""

from manyhands.split.intake.job import Intake

__all__ = ["Intake"]
