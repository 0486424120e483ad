"""Minutes of random faults on both sides: whatever happened, the bits of one process.

``MANYHANDS_SOAK_SECONDS`` sets how long; the seed is printed, and ``MANYHANDS_SOAK_SEED`` repeats it.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from chaos_runs import Chaos, alone, audit

from manyhands.clock import SystemClock
from manyhands.testing.cluster import LocalCluster
from manyhands.testing.faults import Fault

SECONDS = float(os.environ.get("MANYHANDS_SOAK_SECONDS", "120"))
SEED = int(os.environ.get("MANYHANDS_SOAK_SEED", random.SystemRandom().randrange(10_000)))
NODES = 3
CHANGES = {"epochs": 100_000, "checkpoint_interval": 0.005}


class Soak:
    """A cluster that is never left in peace."""

    def __init__(self, cluster: LocalCluster, chance: random.Random) -> None:
        self._cluster = cluster
        self._chance = chance
        self._alive = list(range(NODES))
        self.happened: Counter[str] = Counter()

    def go_on(self) -> None:
        """One thing goes wrong, and three nodes are there again."""
        harm = self._chance.choice(
            [
                self._kill_node,
                self._pause_node,
                self._kill_coordinator,
                self._pause_coordinator,
                self._kill_both,
                self._send_a_bad_node,
            ]
        )
        self.happened[harm.__name__.strip("_")] += 1
        harm()
        self._replace_the_dead()

    def _kill_node(self) -> None:
        self._cluster.kill(self._chance.choice(self._alive))

    def _pause_node(self) -> None:
        """Short of its lease, or past it."""
        node = self._chance.choice(self._alive)
        self._cluster.stop_signal(node)
        SystemClock().sleep(self._chance.choice([0.1, 1.0, 3.0]))
        self._cluster.cont(node)

    def _kill_coordinator(self) -> None:
        self._cluster.kill_coordinator()
        self._cluster.restart_coordinator()

    def _pause_coordinator(self) -> None:
        """When it goes on, every lease is overdue at once."""
        os.kill(self._cluster.pid(), signal.SIGSTOP)
        SystemClock().sleep(self._chance.choice([0.1, 3.0]))
        os.kill(self._cluster.pid(), signal.SIGCONT)

    def _kill_both(self) -> None:
        node = self._chance.choice(self._alive)
        self._cluster.kill_coordinator()
        self._cluster.kill(node)
        self._cluster.restart_coordinator()

    def _send_a_bad_node(self) -> None:
        """One whose messages are lost, doubled, damaged, cut off; it may die of it, or stay."""
        at = self._chance.choice(["granted", "computed", "sent"])
        action = self._chance.choice(["drop", "duplicate", "disconnect", "corrupt", "kill"])
        fault = Fault(at=at, action=action, count=self._chance.randint(1, 20))
        self._alive.append(self._cluster.start_node(faults=[fault]))

    def _replace_the_dead(self) -> None:
        self._alive = [node for node in self._alive if self._cluster.is_running(node)]
        while len(self._alive) > NODES:
            self._cluster.kill(self._alive.pop(0))
        while len(self._alive) < NODES:
            self._alive.append(self._cluster.start_node())

    def wait_for_all(self) -> None:
        """Whoever still dials when the run ends would go on dialling."""

        def are_here(status: dict[str, Any]) -> bool:
            running = [node for node in self._alive if self._cluster.is_running(node)]
            return len(status["nodes"]) >= len(running)

        self._cluster.wait_status(are_here, 60.0, "all nodes that run")

    def end(self) -> None:
        """Nodes that were not killed end well, or say that a message of theirs was damaged."""
        for node in self._alive:
            assert self._cluster.returncode(node) in (0, 5, -signal.SIGKILL), self._cluster.logs(node)[-2000:]


def wait_for_a_step(cluster: LocalCluster, seconds: float) -> None:
    """The run gets on, whatever happened."""
    cluster.wait_step(max(cluster.step_seconds, default=-1) + 1, seconds)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 3 + 300)
def test_random_faults_for_minutes(chaos: Chaos, tell: Callable[[str], None]) -> None:
    tell(f"soak: MANYHANDS_SOAK_SEED={SEED}")
    clock, chance = SystemClock(), random.Random(SEED)
    with chaos.cluster("norm-adamw", NODES, gated=False, **CHANGES) as cluster:
        soak = Soak(cluster, chance)
        cluster.wait_step(0)
        deadline = clock.monotonic() + SECONDS
        while clock.monotonic() < deadline:
            clock.sleep(chance.uniform(0.0, 2.0))
            soak.go_on()
            wait_for_a_step(cluster, 60.0)
        soak.wait_for_all()
        cluster.stop()
        report = cluster.wait(60)
        audit(cluster, report)
        soak.end()
        fired = Counter(f"{f.fault.action} at {f.fault.at}" for f in cluster.fired)
    tell(f"soak: {dict(soak.happened)}; {dict(fired)}; {report['steps']} steps")
    expected = alone("norm-adamw", **{**CHANGES, "max_steps": report["steps"]})
    assert report["weights_sha256"] == expected.weights_sha256
    assert report["samples_applied"] == expected.samples_applied
    assert report["bit_exact"]
