"""What a user may ask of a pool, checked once: every wrong value is a UsageError before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from manyhands.errors import UsageError
from manyhands.pool import checks
from manyhands.training.step import Precision, check_precision

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
_EARLY = {"monitor": "val_loss", "patience": 5, "min_delta": 0.001, "restore_best": True}


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


def early_stopping(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """The rule with its defaults filled in; UsageError for an unknown key."""
    if given is None:
        return None
    if not isinstance(given, dict):
        raise UsageError(f"early_stopping={given!r} must be a dict with some of {', '.join(_EARLY)}")
    unknown = set(given) - set(_EARLY)
    if unknown:
        raise UsageError(f"early_stopping has no {sorted(unknown)[0]!r}; it has {', '.join(_EARLY)}")
    if given.get("monitor", "val_loss") not in ("val_loss", "val_accuracy"):
        raise UsageError(f"early_stopping monitors val_loss or val_accuracy, not {given['monitor']!r}")
    rule = {**_EARLY, **given}
    checks.whole("early_stopping's patience", rule["patience"], 1)
    checks.number("early_stopping's min_delta", rule["min_delta"], 0.0)
    return rule
