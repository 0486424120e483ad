"""Who computes what when: pure generators of operations, one file a schedule under its picture.

``operations`` holds the words, ``table`` the schedules by name; p is the number of workers, m of micro-batches.
"""

from manyhands.pipeline.schedules.operations import Kind, Operation, Schedule
from manyhands.pipeline.schedules.table import NAMES, schedule_of

__all__ = ["NAMES", "Kind", "Operation", "Schedule", "schedule_of"]
