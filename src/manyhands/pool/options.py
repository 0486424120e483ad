"""What a user may ask of a pool, checked once: every wrong value is a UsageError before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from manyhands.errors import UsageError
from manyhands.settings import checks
from manyhands.training.step import Precision, check_precision
from manyhands.training.stopping import early_stopping

Data = Literal["ship", "local"]
Numerics = Literal["tolerant", "strict"]
OnNonFinite = Literal["stop", "skip_step"]
OnBadSample = Literal["stop", "quarantine"]


@dataclass(frozen=True)
class PoolOptions:
    """The arguments of ``CentralServer`` that shape the run (its docstring says what they mean)."""

    batch_size: int = 16
    micro_batches: int = 4
    epochs: int = 1
    max_steps: int | None = None
    shuffle: bool = True
    drop_last: bool = False
    seed: int = 0
    num_workers: int = 0
    precision: Precision = "fp32"
    clip_norm: float | None = None
    aggregation: Literal["sync"] = "sync"
    compression: Literal["int8"] | None = None
    data: Data = "ship"
    numerics: Numerics = "tolerant"
    verify: float = 0.0
    on_nonfinite: OnNonFinite = "stop"
    on_bad_sample: OnBadSample = "stop"
    queue_size: int = 1000
    checkpoint_interval: float = 5.0
    val_every: int | None = None
    early_stopping: dict[str, Any] | None = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    weight: Callable[[Any], float] | None = None


_CHOICES = {
    "aggregation": ("sync",),
    "compression": (None, "int8"),
    "data": ("ship", "local"),
    "numerics": ("tolerant", "strict"),
    "on_nonfinite": ("stop", "skip_step"),
    "on_bad_sample": ("stop", "quarantine"),
}


def check_options(options: PoolOptions) -> None:
    """UsageError naming the first argument that cannot be."""
    for name, choices in _CHOICES.items():
        value = getattr(options, name)
        if value not in choices:
            raise UsageError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")
    if options.data == "local" and options.collate_fn is not None:
        raise UsageError(
            'collate_fn does not reach nodes that read their own data: with data="local" leave it None, and do its '
            "work in the dataset"
        )
    check_precision(options.precision)
    checks.whole("seed", options.seed, -(1 << 63), (1 << 63) - 1)  # as it travels
    checks.number("verify", options.verify, 0.0, 1.0)
    if options.num_workers < 0:
        raise UsageError(f"num_workers={options.num_workers} must be 0 (load here) or a number of processes")
    if options.queue_size < 1:
        raise UsageError(f"queue_size={options.queue_size} must be at least 1 prepared micro-batch")
    if options.clip_norm is not None:
        checks.number("clip_norm", options.clip_norm, 0.0, above=True)
    checks.number("checkpoint_interval", options.checkpoint_interval, 0.0, above=True)
    if options.val_every is not None:
        checks.whole("val_every", options.val_every, 1)
    checks.callables(collate_fn=options.collate_fn, weight=options.weight)
    early_stopping(options.early_stopping)
