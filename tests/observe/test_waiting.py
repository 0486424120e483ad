"""A line at once, then one every half minute, and a new wait begins from nothing."""

import io

from manyhands.clock import ManualClock
from manyhands.observe.waiting import Waiting


def test_says_at_once_then_every_half_minute() -> None:
    clock, stream = ManualClock(), io.StringIO()
    waiting = Waiting(clock, stream)
    for _ in range(61):
        waiting.say(f"waiting for {waiting.seconds:.0f} s")
        clock.sleep(1.0)
    assert stream.getvalue().splitlines() == [
        "manyhands: waiting for 0 s",
        "manyhands: waiting for 30 s",
        "manyhands: waiting for 60 s",
    ]
    waiting.over()
    assert waiting.seconds == 0.0
    waiting.say("again")
    assert stream.getvalue().splitlines()[-1] == "manyhands: again"
