"""The pipeline's example fits its curve on two workers of this machine, and draws it."""

from __future__ import annotations

import re


def test_two_workers_fit_the_sine(terminals, tmp_path):
    picture = tmp_path / "loss.png"
    boss = terminals.start(
        "pipeline_sine.py", "--local", "--port", "0", "--epochs", "100", "--plot", str(picture)
    )
    printed = terminals.finish(boss)
    losses = [float(value) for value in re.findall(r"step \d+: loss ([\d.]+)", printed)]
    assert len(losses) == 2
    assert float(re.search(r"last 20 steps ([\d.]+)", printed)[1]) < 0.02
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_three_workers_share_a_unet(terminals):
    """Each long skip passes over at least one cut, and comes in where it is taken."""
    printed = terminals.finish(
        terminals.start("pipeline_unet.py", "--local", "--port", "0", "--steps", "10", "--rows", "16")
    )
    assert re.search(r"goes to stage \d", printed)
    assert float(re.search(r"step 10: loss ([\d.]+)", printed)[1]) < 0.7
    assert float(re.search(r"([\d.]+)% of the pixels right", printed)[1]) > 50


def test_two_workers_share_a_gpt_with_one_table(terminals):
    printed = terminals.finish(terminals.start("pipeline_gpt.py", "--local", "--port", "0", "--steps", "20"))
    losses = [float(value) for value in re.findall(r"step \d+: loss ([\d.]+)", printed)]
    assert losses[1] < losses[0] < 3.8
    assert "both copies of the table are the same: True" in printed
