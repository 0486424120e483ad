"""A bar on a terminal, plain lines elsewhere, never more often than asked."""

from __future__ import annotations

import io
import os
import pty
import select

from manyhands.clock import ManualClock
from manyhands.observe.progress import BarProgress, LineProgress, Standing, describe, open_progress


def test_a_line_says_what_is_known():
    everything = Standing(40, 200, 0.42134, 1234.0, 3, 1)
    assert describe(everything, 12.2) == (
        "step 40/200 · epoch 1 · loss 0.4213 · 1.2k samples/s · 3 nodes · 12 s left"
    )
    assert describe(Standing(7)) == "step 7"
    assert describe(Standing(7, nodes=1)) == "step 7 · 1 node"


def test_lines_come_no_more_often_than_asked_and_the_last_always():
    clock, out = ManualClock(), io.StringIO()
    progress = open_progress(clock, stream=out, line_seconds=5.0)
    assert isinstance(progress, LineProgress)
    for step in range(1, 24):
        progress.update(Standing(step, 23))
        clock.sleep(0.5)
    progress.note("node pc left")
    progress.close()
    progress.close()
    assert out.getvalue().splitlines() == [
        "step 1/23",
        "step 11/23 · 6.0 s left",
        "step 21/23 · 1.0 s left",
        "node pc left",
        "step 23/23 · 0.0 s left",
    ]


def test_bars_can_be_switched_off():
    main, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        assert isinstance(open_progress(ManualClock(), stream=stream, bars=False), LineProgress)
        assert isinstance(open_progress(ManualClock(), stream=stream), BarProgress)
    os.close(main)


def test_a_bar_draws_on_a_real_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    clock = ManualClock()
    main, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        progress = open_progress(clock, stream=stream)
        for step in range(1, 6):
            progress.update(Standing(step, 5, loss=0.5))
            progress.note(f"[bold]step {step}[/bold]")
            clock.sleep(0.04)
        progress.close()
        progress.close()
    shown = ""
    while select.select([main], [], [], 0)[0]:
        try:
            data = os.read(main, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data.decode()
    os.close(main)
    assert "step 5/5" in shown
    assert "step 2/5" not in shown
    assert "[bold]step 3[/bold]" in shown
    assert "\x1b[" in shown
