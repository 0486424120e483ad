"""A small model over three workers, one micro-batch at a time: milliseconds a step against torch's GPipe.

W=256 and 32 rows, so that what counts is the way from worker to worker. Torch's GPipe with one micro-batch is the same
work; with four it is what its users would take. Run: ``python benchmarks/pipeline_naive.py``.
"""

from __future__ import annotations

from common.pipeline_lines import run
from common.stages import Problem, Rival


def main() -> None:
    rivals = [Rival("ScheduleGPipe", micro_batches) for micro_batches in (1, 4)]
    run("pipeline_naive", __doc__, Problem(256, 32, 1, "naive"), rivals, steps=100)


if __name__ == "__main__":
    main()
