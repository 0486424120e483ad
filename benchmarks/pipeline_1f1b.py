"""A large model over three workers with 8 micro-batches: milliseconds a step, 1F1B against torch's.

W=1024 and 512 rows, so that what counts is what overlaps. Run: ``python benchmarks/pipeline_1f1b.py``.
"""

from __future__ import annotations

from common.pipeline_lines import run
from common.stages import Problem, Rival


def main() -> None:
    run("pipeline_1f1b", __doc__, Problem(1024, 512, 8, "1f1b"), [Rival("Schedule1F1B", 8)], steps=12)


if __name__ == "__main__":
    main()
