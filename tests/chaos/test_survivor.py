"""When a node is killed, the others go on at once."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
from chaos_runs import Chaos, check

from manyhands.testing.faults import Fault, Point

LEAF_SECONDS = 0.02
IDLE_SECONDS = 1.0


@pytest.mark.parametrize(
    "at",
    ["computing", *(pytest.param(at, marks=pytest.mark.slow) for at in ("granted", "half_sent", "sent"))],
)
def test_a_survivor_idles_less_than_a_second(chaos: Chaos, tell: Callable[[str], None], at: Point) -> None:
    script = [Fault(at=at, count=10)]
    with chaos.cluster("norm-sgd", 2, [script], leaf_seconds=LEAF_SECONDS, epochs=4) as cluster:
        chaos.begin(cluster, 2)
        killed = cluster.wait_fired(0).step
        report = cluster.wait()
        seconds = cluster.step_seconds
    assert killed is not None
    took = {step: seconds[step] - seconds[step - 1] for step in seconds if step}
    before = statistics.median(took[step] for step in took if step < killed)
    gap = max(took[step] for step in took if killed <= step <= killed + 2)
    tell(f"a kill at {at!r}: the step took {gap:.3f} s, the median before {before:.3f} s")
    assert gap - before < IDLE_SECONDS
    check(report, "norm-sgd", epochs=4)
