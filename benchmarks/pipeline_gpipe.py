"""A large model over three workers with 8 micro-batches: milliseconds a step, GPipe against torch's.

W=1024 and 512 rows, so that what counts is what overlaps. Run: ``python benchmarks/pipeline_gpipe.py``.
"""

from __future__ import annotations

from common.pipeline_lines import run
from common.stages import Problem, Rival


def main() -> None:
    run("pipeline_gpipe", __doc__, Problem(1024, 512, 8, "gpipe"), [Rival("ScheduleGPipe", 8)], steps=12)


if __name__ == "__main__":
    main()
