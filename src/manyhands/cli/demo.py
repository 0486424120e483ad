"""``manyhands demo``: the main job on this machine, and the proof.

::

    coordinator ── node-0, node-1, node-2   real processes; one is killed while it holds a lease
         └─▶ checkpoint ──▶ accuracy on digits that nobody trained on
    this process, alone, the same job ──▶ the same bits, or exit 5

Nothing is assumed about the outcome: each figure is measured in this run.
"""

from __future__ import annotations

import importlib.util
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manyhands.cli import console
from manyhands.cli.owner import JsonOption
from manyhands.errors import RunFailed, UsageError

if TYPE_CHECKING:
    from manyhands.testing import LocalCluster

_RUN_SECONDS = 240.0


def demo(
    nodes: Annotated[int, typer.Option(min=1, max=8, help="How many node processes to start.")] = 3,
    no_kill: Annotated[bool, typer.Option("--no-kill", help="Kill none of them.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Train on real digits here, kill a node, prove the same bits."""
    from manyhands.clock import SystemClock

    if nodes == 1 and not no_kill:
        raise UsageError("--nodes 1: killing the only node leaves nobody to finish; add --no-kill")
    if importlib.util.find_spec("sklearn") is None:
        raise UsageError(
            "the demo's handwritten digits come with scikit-learn, which is not installed: "
            'pip install "manyhands[demo]"'
        )
    clock = SystemClock()
    started = clock.monotonic()
    outcome = _run(nodes, kills=not no_kill)
    outcome["seconds"] = round(clock.monotonic() - started, 2)
    if as_json:
        console.show_json(outcome)
    else:
        _tell_result(outcome)
    if not outcome["bit_identical"]:
        raise RunFailed("the pool's weights are not the bits of one process: this is a bug, please report it")
    return 0


def _run(nodes: int, *, kills: bool) -> dict[str, Any]:
    from manyhands.cli import digits
    from manyhands.testing import Fault, LocalCluster

    console.tell(f"starting a coordinator and {nodes} nodes, each a process of its own", "bold")
    victim = nodes - 1 if kills else None
    # A quarter of the way through what its share of the leaves would be.
    dying = Fault(at="computing", action="kill", count=max(1, digits.num_leaves() // (4 * nodes)))
    scripts = [[dying] if number == victim else [] for number in range(nodes)]
    with LocalCluster(digits.TARGET, nodes=nodes, faults=scripts) as cluster:
        console.tell(f"training on handwritten digits, {digits.EPOCHS} epochs, over mutual TLS on loopback")
        killed = _watch_death(cluster, victim) if victim is not None else 0
        report = cluster.wait(_RUN_SECONDS)
        accuracy = _accuracy(cluster.checkpoint_dir)
    console.tell(f"the pool is done: {report['steps']} steps, accuracy {accuracy:.1%} on digits it never saw")
    console.tell("now the same job in this process alone")
    reference = _reference()
    return {
        "accuracy": accuracy,
        "steps": report["steps"],
        "nodes": report["nodes_seen"],
        "killed": killed,
        "samples_applied": report["samples_applied"],
        "samples_expected": report["samples_expected"],
        "reissued": report["reissued"],
        "bit_identical": report["weights_sha256"] == reference,
        "weights_sha256": report["weights_sha256"],
        "reference_sha256": reference,
    }


def _watch_death(cluster: LocalCluster, victim: int) -> int:
    """Wait until the victim has died by SIGKILL, mid-lease; how many died."""
    fired = cluster.wait_fired(victim)
    code = cluster.returncode(victim)
    if code != -signal.SIGKILL:
        raise RunFailed(f"node-{victim} was to be killed, and ended with {code}\n{cluster.logs(victim)}")
    console.tell(f"node-{victim} was killed (SIGKILL) in step {fired.step}, while computing a lease", "red")
    return 1


def _accuracy(checkpoint_dir: Path) -> float:
    """What the saved model makes of the test digits, loaded as anybody would load it."""
    from safetensors.torch import load_model

    from manyhands.cli import digits
    from manyhands.store.checkpoint import newest

    found = newest(checkpoint_dir)
    if found is None:
        raise RunFailed(f"the run ended without a checkpoint in {checkpoint_dir}")
    model = digits.network()
    load_model(model, found.path / "model.safetensors")
    return digits.accuracy(model, digits.digits()[1])


def _reference() -> str:
    """The same job in this process, alone; the hash of its weights."""
    import torch

    from manyhands.cli import digits
    from manyhands.pool.target import parts_of, run_reference

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the nodes: another number of threads adds in another order
    try:
        return run_reference(parts_of(digits.job())).weights_sha256
    finally:
        torch.set_num_threads(before)


def _tell_result(outcome: dict[str, Any]) -> None:
    lines = [
        f"  accuracy         {outcome['accuracy']:.1%} on digits that nobody trained on",
        f"  samples applied  {outcome['samples_applied']} of {outcome['samples_expected']}",
        f"  nodes            {outcome['nodes']} joined, {outcome['killed']} killed, "
        f"{outcome['reissued']} leases re-issued",
        f"  the pool         {outcome['weights_sha256']}",
        f"  one process      {outcome['reference_sha256']}",
        f"  {'the same weights, to the last bit' if outcome['bit_identical'] else 'DIFFERENT WEIGHTS'}"
        f" ({outcome['seconds']} s)",
    ]
    console.show("\n".join(lines))
