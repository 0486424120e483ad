"""A loader's end of one stream: leases in, batches out within the window, results back.

`outbox` decides what goes next, `stream` speaks and listens, and `events` are what it tells whoever runs the job.
"""

from manyhands.split.delivery.stream import Assignment, Delivery

__all__ = ["Assignment", "Delivery"]
