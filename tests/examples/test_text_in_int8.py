"""What rounding to int8 costs the text example half-way, while the model still learns: less than 1 % of the loss.

At the example's own end, epoch 40, that is not so: 0.1289 against 0.1204 in fp32, 7 % off, and 0.105 to 0.129 over
three keys of the noise. By then the lines are known by heart. This test does not claim that end.
"""

from __future__ import annotations

import importlib
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from manyhands.training.reference import reference

EPOCHS = 20
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_half_way_the_text_examples_loss_is_within_one_percent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    text: Any = importlib.import_module("text_model")
    data = text.Lines()
    steps_per_epoch = -(-len(data) // 16)
    torch.set_num_threads(1)
    ends = {}
    for compression in (None, "int8"):
        losses = reference(
            text.TextModel(),
            data,
            batch_size=16,
            epochs=EPOCHS,
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
            clip_norm=1.0,
            compression=compression,
        ).losses
        ends[compression] = statistics.fmean(losses[-steps_per_epoch:])
    with capsys.disabled():
        print(  # noqa: T201 - the figures are what the test is for
            f"\ntext example, loss of epoch {EPOCHS}: fp32 {ends[None]:.4f}, int8 {ends['int8']:.4f}"
        )
    assert ends["int8"] == pytest.approx(ends[None], rel=0.01)
