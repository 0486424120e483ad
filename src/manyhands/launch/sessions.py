"""What a script asks for under `manyhands launch` (or torchrun, or alone): its rank, its device, its wrapped model.

::

    s = manyhands.launch.session()
    model, optimizer, scheduler, loader = s.prepare(model, optimizer, scheduler, loader)
    start = s.resume("checkpoints").get("epoch", 0)
    for epoch in range(start, 10):
        for inputs, targets in s.progress(loader):
            ...a step as in one process...
        s.save("checkpoints", epoch=epoch + 1)

The same lines train on one process and on many: global batches, their order and their mean gradient are those
of one process. The step itself stays the script's.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, random_split

from manyhands.clock import SystemClock
from manyhands.errors import RunFailed, UsageError
from manyhands.launch.group import (
    Rank,
    digest,
    first_difference,
    gathered,
    like,
    on_cpu,
    total,
)
from manyhands.launch.keeping import Keeper, Kept
from manyhands.launch.preparing import Preparer, Strategy, unwrapped
from manyhands.launch.sharing import Share
from manyhands.launch.showing import shown
from manyhands.observe.metrics import MetricLog
from manyhands.training.seeds import derive


class Session:
    """One rank's view of the run. `device`, `rank`, `local_rank`, `world_size` and `is_main` are its own.

    Methods that talk to the other ranks (`prepare`, `mean`, `sum`, `save`, `resume`, `check_equal`, `barrier`)
    must be called by all of them, in the same order.
    """

    def __init__(
        self,
        rank: Rank,
        device: torch.device,
        strategy: Strategy,
        seed: int,
        log: MetricLog,
        clock: SystemClock,
    ) -> None:
        self._rank = rank
        self.device = device
        self._is_sharded = strategy == "fsdp"
        self._seed = seed
        self._log = log
        self._clock = clock
        self._share = Share()
        self._kept = Kept(is_sharded=self._is_sharded)
        self._preparer = Preparer(rank, device, strategy, seed, self._share, self._kept)
        self._keeper = Keeper(self._kept, rank, clock)
        self._standing: dict[str, float] = {}

    # ---- who this is ----

    @property
    def rank(self) -> int:
        """From 0 to world_size - 1."""
        return self._rank.rank

    @property
    def local_rank(self) -> int:
        """The rank on its machine."""
        return self._rank.local_rank

    @property
    def world_size(self) -> int:
        """How many ranks there are on all machines."""
        return self._rank.world_size

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self._rank.rank == 0

    @property
    def share(self) -> int | None:
        """How many samples of the current batch are this rank's own (0: it only keeps step); None outside a loop."""
        return self._share.num_samples

    # ---- preparing ----

    def prepare(self, *objects: Any) -> Any:
        """Modules, optimizers, schedulers and DataLoaders for many ranks, in the order given; one alone by itself.

        A module comes back on its device, as DDP (or another strategy's); all ranks begin with rank 0's
        parameters. A DataLoader's ``batch_size`` is the global one: each rank gets its part of every batch, on its
        device, in an order that all ranks share. Everything else comes back itself. UsageError for what none of
        these is.
        """
        prepared = self._preparer.prepare(objects)
        return prepared[0] if len(prepared) == 1 else prepared

    def unwrap(self, module: nn.Module) -> nn.Module:
        """The script's own module, without what `prepare` put around it."""
        return unwrapped(module)

    def split(self, dataset: Dataset[Any], lengths: Sequence[float]) -> list[Subset[Any]]:
        """The dataset in random parts, e.g. ``split(data, [0.9, 0.1])``: the same on all ranks and every time."""
        generator = torch.Generator().manual_seed(derive(self._seed, "split"))
        return random_split(dataset, lengths, generator=generator)

    # ---- talking to the others ----

    @overload
    def mean(self, value: Tensor, weight: float | None = None) -> Tensor: ...
    @overload
    def mean(self, value: float, weight: float | None = None) -> float: ...
    def mean(self, value: Tensor | float, weight: float | None = None) -> Tensor | float:
        """The mean over all ranks, on all ranks: of a number a number, of a tensor a tensor.

        Each rank weighs `weight`; without one, what its part of the current batch is, so that the mean of
        per-batch means is that of the global batch; outside a loop over a prepared loader all weigh alike.
        """
        own = self._share.weight if weight is None else weight
        values = on_cpu(value)
        summed = total(
            torch.cat([(values * own).reshape(-1), torch.tensor([own], dtype=torch.float64)]), self._rank
        )
        return like(value, (summed[:-1] / summed[-1]).reshape(values.shape))

    @overload
    def sum(self, value: Tensor) -> Tensor: ...
    @overload
    def sum(self, value: float) -> float: ...
    def sum(self, value: Tensor | float) -> Tensor | float:
        """The sum over all ranks, on all ranks, in the form of `mean`."""
        return like(value, total(on_cpu(value), self._rank))

    def barrier(self) -> None:
        """Return when all ranks are here."""
        total(torch.zeros(1), self._rank)

    def check_equal(self, module: nn.Module) -> None:
        """RunFailed naming the first parameter that is not the same, bit for bit, on all ranks, and where."""
        if self._is_sharded:
            return
        named = dict(self.unwrap(module).named_parameters())
        digests = gathered(torch.tensor([digest(p) for p in named.values()]), self._rank)
        for name, ranks in first_difference(digests, list(named)).items():
            raise RunFailed(
                f"the parameter {name} on rank {', '.join(map(str, ranks))} is not that of rank 0: something "
                "changed it outside the prepared model's backward and the prepared optimizer's step"
            )

    # ---- keeping ----

    def save(self, path: str | Path, *, step: int | None = None, **extra: Any) -> Path:
        """Write a checkpoint of all that was prepared, and `extra` (plain data), into the folder `path`.

        ``path/run-0001/step-N/``, where N is `step`, else one more than the last; newest 3 kept, a new run for a
        script that did not resume. Checks before that all ranks have equal parameters.
        """
        if not self._kept.models:
            raise UsageError("save() writes what was prepared, and no model was: s.prepare(model, ...) first")
        for model in self._kept.models:
            self.check_equal(model)
        return self._keeper.save(Path(path), step, extra)

    def resume(self, path: str | Path, *, own: bool = False) -> dict[str, Any]:
        """Load the newest whole checkpoint in `path` (or `path` itself, a ``step-N``) into all that was prepared.

        What was given to `save` beside it; an empty dict where there is no checkpoint yet. On any world size.
        With `own` only one that this launch has saved: there is none in the first attempt, and there is in those
        after it (``--max-restarts``). `Mismatch` for a checkpoint of another model, with nothing changed.
        """
        if not self._kept.models:
            raise UsageError(
                "resume() loads into what was prepared, and no model was: s.prepare(model, ...) first"
            )
        found = self._keeper.resume(Path(path), own=own)
        if found is None and not own:
            self.print(f"no checkpoint in {path}: starting from the beginning", file=sys.stderr)
        return found or {}

    # ---- showing ----

    def print(self, *values: object, **options: Any) -> None:
        """Print on rank 0 only."""
        if self.is_main:
            builtins.print(*values, **{"flush": True, **options})  # noqa: T201 - the script's own word

    def log(self, step: int, **values: float) -> None:
        """Append numbers to the log that `session(log=...)` names; rank 0's are kept."""
        if self.is_main:
            self._log.write(step, values)

    def progress(self, batches: Iterable[Any], epoch: int | None = None) -> Iterator[Any]:
        """The same batches, with a bar on rank 0; `show(loss=...)` puts a loss beside it."""
        if not self.is_main:
            yield from batches
            return
        yield from shown(batches, epoch, lambda: self._standing.get("loss"), self._clock)

    def show(self, *, loss: float | Tensor) -> None:
        """The loss to show beside the bar."""
        self._standing["loss"] = float(loss)

    # ---- ending ----

    def close(self) -> None:
        """Close the log and leave the group. Safe to call twice; at the end of a script it is done."""
        self._log.close()
        if dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
