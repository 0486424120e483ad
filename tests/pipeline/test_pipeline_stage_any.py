"""Any graph, any cut, any schedule, any number of micro-batches: the bits of one process."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stage_models import Mix, Model, Spec, model_of
from stage_pairs import SCHEDULES, batches, train

from manyhands.pipeline.graph import MAIN_INPUT
from manyhands.pipeline.stage.engine import StageSettings


@st.composite
def models(draw: st.DrawFn) -> tuple[Model, tuple[int, ...]]:
    """A chain of 2 to 6 layers, each with up to three skips from anywhere before it, twice the same included."""
    num_layers = draw(st.integers(2, 6))
    specs = []
    for at in range(num_layers):
        before = [MAIN_INPUT, *map(str, range(at))]
        skips = draw(st.lists(st.sampled_from(before), max_size=3))
        specs.append(Spec(Mix(), (before[-1], *skips), (str(at),)))
    inner = draw(st.sets(st.integers(1, num_layers - 1), min_size=1))
    return model_of(specs), (0, *sorted(inner), num_layers)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models(), st.sampled_from(SCHEDULES), st.integers(1, 5), st.booleans())
def test_the_bits_of_one_process(
    case: tuple[Model, tuple[int, ...]], name: str, num_micro_batches: int, recompute: bool
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, bounds = case
    if name == "interleaved" and len(bounds) % 2 == 0:  # an odd number of stages: two a worker does not go
        name = "1f1b"
    train(
        model,
        bounds,
        batches(2),
        name=name,
        settings=StageSettings(recompute=recompute),
        num_micro_batches=num_micro_batches,
    )
