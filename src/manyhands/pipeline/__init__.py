"""Pipeline mode: one model cut over several machines, skip connections included.

Read `graph` first (layers and the named edges between them), then `plan` (where to cut) and `schedules` (who
computes what when). `boss` and `worker` are the two roles. A boss has a `crew` of workers, a `deployment` of its
model on them, and a `run` over it; `driver` is what keeps that whole when a worker is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manyhands.pipeline.boss import BossMan
    from manyhands.pipeline.wrapped import wrapped_linear

__all__ = ["BossMan", "wrapped_linear"]


def __getattr__(name: str) -> Any:
    """A public name, loaded when it is first used: `manyhands worker` looks at its line before it loads torch."""
    if name == "BossMan":
        from manyhands.pipeline.boss import BossMan

        return BossMan
    if name == "wrapped_linear":
        from manyhands.pipeline.wrapped import wrapped_linear

        return wrapped_linear
    raise AttributeError(f"module 'manyhands.pipeline' has no attribute {name!r}")
