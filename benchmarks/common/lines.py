"""The one line that a benchmark prints for a figure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence


def report(name: str, ours: float, theirs: float, unit: str, higher_is_better: bool, setup: str) -> None:
    """Print one JSON line; `theirs` is the other side of the same run, or the target where there is none."""
    ratio = round(ours / theirs, 3) if theirs else None
    figures = {"ours": round(ours, 3), "theirs": round(theirs, 3), "ratio": ratio}
    about = {"unit": unit, "higher_is_better": higher_is_better, "setup": setup}
    print(json.dumps({"name": name, **figures, **about}), flush=True)


def spread(values: Sequence[float]) -> str:
    """Median, mean and 95th percentile, for the setup's text."""
    ordered = sorted(values)
    late = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return f"median {statistics.median(ordered):.2f}, mean {statistics.fmean(ordered):.2f}, p95 {late:.2f}"
