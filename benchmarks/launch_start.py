"""An empty script on 2 ranks: seconds of `manyhands launch` against torchrun, from start to exit.

Both import torch, meet, start two Python processes and see them end. Run: ``python benchmarks/launch_start.py``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common.lines import report


def seconds(command: list[str]) -> tuple[float, float]:
    """(elapsed, processor) seconds of one run, its children's included."""
    before = os.times()
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    elapsed = time.perf_counter() - start
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return elapsed, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    given = parser.parse_args()
    python = [sys.executable, "-m"]
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "empty.py"
        script.touch()
        ours = [*python, "manyhands", "launch", "--nproc", "2", str(script)]
        theirs = [*python, "torch.distributed.run", "--nproc-per-node", "2", str(script)]
        seconds(ours), seconds(theirs)
        turns = [(seconds(ours), seconds(theirs)) for _ in range(given.turns)]
    our_elapsed, their_elapsed = ([turn[side][0] for turn in turns] for side in (0, 1))
    our_spent, their_spent = (statistics.median(turn[side][1] for turn in turns) for side in (0, 1))
    setup = (
        f"an empty script, 2 ranks, one machine, {given.turns} turns in alternation, one warm-up each; processor time "
        f"{our_spent:.2f} s and {their_spent:.2f} s; spread {min(our_elapsed):.2f} to {max(our_elapsed):.2f} s and "
        f"{min(their_elapsed):.2f} to {max(their_elapsed):.2f} s"
    )
    report(
        "launch_start", statistics.median(our_elapsed), statistics.median(their_elapsed), "s", False, setup
    )


if __name__ == "__main__":
    main()
