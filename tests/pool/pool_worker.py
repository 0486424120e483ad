"""A node process of these tests: takes orders as JSON lines, one run after another, and says how each ended."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import torch
from pool_jobs import build
from torch import nn

from manyhands.pool.node import TrainingNode


def by_hand(node: TrainingNode, criterion: Any) -> int:
    """The custom loop; the number of batches it computed."""
    done = 0
    node.connect()
    loss_of = criterion or nn.CrossEntropyLoss()
    model = node.model
    assert model is not None
    while (batch := node.get_batch()) is not None:
        model.zero_grad()
        loss_of(model(batch["inputs"]), batch["targets"]).backward()
        if done % 2:
            node.send_gradients([p.grad for p in model.parameters()], batch["batch_id"])
        else:
            node.send_gradients({n: p.grad for n, p in model.named_parameters()}, batch["batch_id"])
        done += 1
    node.close()
    return done


def work(order: dict[str, Any]) -> dict[str, Any]:
    if "threads" in order:  # as a machine with fewer cores than the coordinator has threads
        adapt = torch.set_num_threads
        adapt(order["threads"])
        torch.set_num_threads = lambda number: None
        try:
            return work({name: value for name, value in order.items() if name != "threads"})
        finally:
            torch.set_num_threads = adapt
            adapt(1)
    model, dataset, options = build(order["job"])
    if order.get("other_model"):
        model = nn.Linear(8, 4)
    if order.get("no_code"):
        model = None
    if "copy_of" in order:
        dataset = build(order["copy_of"])[1]
    node = TrainingNode(
        model,
        ("localhost", order["port"]),
        dataset=dataset if order.get("local") else None,
        compress_gradients=bool(order.get("compress")),
    )
    if order.get("raises"):
        model.register_forward_hook(_raise)
    if "fails_at" in order:
        model.register_forward_hook(_FailsAt(order["fails_at"]))
    if "slow" in order:
        model.register_forward_hook(lambda *args: _take_time(order["slow"]))
    losses: list[tuple[float, int]] = []
    figures: list[dict[str, Any]] = []
    if order.get("by_hand"):
        return {"batches": by_hand(node, options.get("criterion"))}
    node.train(lambda loss, batch: losses.append((loss, batch)), lambda **told: figures.append(told))
    return {
        "batches": len(losses),
        "leases": len(figures),
        "figures": sorted(figures[0]) if figures else [],
        "traffic": figures,
    }


def say(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def _raise(*args: object) -> None:
    raise ZeroDivisionError("the node's own code")


def _take_time(seconds: float) -> None:
    threading.Event().wait(seconds)


class _FailsAt:
    """Raises in the n-th forward, probes included."""

    def __init__(self, number: int) -> None:
        self._left = number

    def __call__(self, *args: object) -> None:
        self._left -= 1
        if self._left == 0:
            raise ZeroDivisionError("the node's own code")


def main() -> None:
    torch.set_num_threads(1)
    say({"ready": True})
    for line in sys.stdin:
        try:
            told = work(json.loads(line))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test asks what it was
            told = {
                "error": type(error).__name__,
                "message": str(error),
                "code": getattr(error, "exit_code", 1),
            }
        say(told)


if __name__ == "__main__":
    main()
