"""The pictures above the schedules are what the simulator draws of them."""

from __future__ import annotations

import importlib

import pytest

from manyhands.pipeline.schedules import Schedule, schedule_of
from manyhands.pipeline.simulator import Times, simulate

LETTERS = {"forward": "F", "backward": "B", "input_backward": "I", "weight_backward": "W"}


def drawn(schedule: Schedule, times: Times, *, by_stage: bool) -> list[str]:
    """A line a worker, two letters and a blank an operation's time."""
    num_stages = 1 + max(operation.stage for own in schedule for operation in own)
    simulated = simulate(schedule, dict.fromkeys(range(num_stages), times))
    lines = []
    for worker, own in enumerate(schedule):
        cells = ["  "] * round(simulated.makespan)
        for operation in own:
            letter = LETTERS[operation.kind]
            if by_stage:
                stage = "abcdefgh"[operation.stage]
                letter = stage if operation.kind == "forward" else stage.upper()
            cells[round(simulated.spans[operation].start)] = f"{letter}{operation.micro_batch}"
        lines.append(f"    worker {worker}   {' '.join(cells).rstrip()}")
    return lines


@pytest.mark.parametrize(
    ("module", "name", "workers", "micro_batches"),
    [
        ("naive", "naive", 3, 2),
        ("gpipe", "gpipe", 3, 4),
        ("one_forward_one_backward", "1f1b", 3, 4),
        ("zero_bubble", "zero_bubble", 3, 4),
        ("interleaved", "interleaved", 2, 4),
    ],
)
def test_the_picture_is_the_schedule(module: str, name: str, workers: int, micro_batches: int) -> None:
    text = importlib.import_module(f"manyhands.pipeline.schedules.{module}").__doc__
    times = Times(1, 2, 1) if name == "zero_bubble" else Times(1, 1, 0)
    picture = [line for line in text.splitlines() if line.strip().startswith("worker ")]
    assert picture == drawn(schedule_of(name, workers, micro_batches), times, by_stage=name == "interleaved")
