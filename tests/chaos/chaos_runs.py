"""Clusters of these tests, what their runs must come to, and a look for what they left behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import chaos_jobs
import psutil

from manyhands.store.ledger import Ledger
from manyhands.store.runs import JOURNAL, latest_run, run_folder
from manyhands.testing import Fault, LocalCluster
from manyhands.training.reference import ReferenceReport, reference

JOBS = str(Path(chaos_jobs.__file__))
NO_BITS = ("checkpoint_interval", "num_workers")
"""Options that one process has no use for."""


class Chaos:
    """Starts the clusters of one test and remembers them."""

    def __init__(self, folder: Path) -> None:
        self._gate = folder / "gate"
        self._folders: list[Path] = []

    @contextmanager
    def cluster(
        self,
        job: str,
        nodes: int,
        faults: Sequence[Sequence[Fault]] = (),
        *,
        gated: bool = True,
        items_before_gate: int = 0,
        leaf_seconds: float = chaos_jobs.LEAF_SECONDS,
        shares_memory: bool = False,
        **changes: Any,
    ) -> Iterator[LocalCluster]:
        """A running cluster; `changes` are of the job's options.

        Its messages travel as between machines, unless the processes may share this one's memory.

        Gated, its first step waits for `begin`; or, with `items_before_gate`, each incarnation of the
        coordinator waits for it after so many items.
        """
        gate = str(self._gate) if gated else None
        arguments = {
            "job": job,
            "gate": gate,
            "items_before_gate": items_before_gate,
            "changes": changes,
            "leaf_seconds": leaf_seconds,
        }
        target, node_target = f"{JOBS}:server", f"{JOBS}:node"
        with LocalCluster(
            target,
            nodes,
            arguments=arguments,
            node_target=node_target,
            faults=faults,
            env={"MANYHANDS_ADVANCED__SHARED_MEMORY": str(shares_memory)},
        ) as cluster:
            self._folders.append(cluster.folder)
            yield cluster

    def begin(self, cluster: LocalCluster, members: int) -> None:
        """Let the run go on when so many nodes have joined."""
        cluster.wait_nodes(members)
        self._gate.touch()

    def left_behind(self) -> list[str]:
        """The processes of this test's clusters that still are, stopped ones too."""
        folders = [str(folder) for folder in self._folders]
        return [text for process in psutil.process_iter() if (text := _of_one(process, folders)) is not None]


def _of_one(process: psutil.Process, folders: list[str]) -> str | None:
    """A process's description where its state folder is one of these."""
    try:
        place = process.environ().get("MANYHANDS_STATE_DIR", "")
        return f"{process.pid} {process.status()} {place}" if place.startswith(tuple(folders)) else None
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return None


@lru_cache(maxsize=64)
def _alone(job: str, changes: tuple[tuple[str, Any], ...]) -> ReferenceReport:
    model, dataset, options = chaos_jobs.parts(job, **dict(changes))
    return reference(model, dataset, **options)


def alone(job: str, **changes: Any) -> ReferenceReport:
    """What one process makes of the job; computed once."""
    return _alone(job, tuple(sorted((name, value) for name, value in changes.items() if name not in NO_BITS)))


def check(report: Mapping[str, Any], job: str, **changes: Any) -> None:
    """The bits of one process, every sample applied once an epoch, one numeric class."""
    expected = alone(job, **changes)
    assert report["samples_applied"] == report["samples_expected"] == expected.samples_applied
    assert report["steps"] == expected.steps
    assert report["weights_sha256"] == expected.weights_sha256
    assert report["bit_exact"]


def audit(cluster: LocalCluster, report: Mapping[str, Any]) -> None:
    """The ledger credits every sample once, and as many as the report says; of a run that has ended."""
    run = latest_run(cluster.checkpoint_dir)
    assert run is not None
    with Ledger(run_folder(cluster.checkpoint_dir, run) / JOURNAL) as ledger:
        assert ledger.audit() == []
        assert ledger.samples_applied() == report["samples_applied"]
