"""Which kind of maker a loader gets, and how many workers."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Final, Literal

from manyhands.errors import UsageError
from manyhands.split.data.columns import Columns
from manyhands.split.data.streams import is_stream
from manyhands.split.jobs import Maker, Phase
from manyhands.split.making.processes import ProcessMaker
from manyhands.split.making.threads import InlineMaker, ThreadMaker
from manyhands.split.narrow import check_transfer_dtype
from manyhands.split.recipe import Recipe
from manyhands.training.workers import why_not_processes

logger = logging.getLogger(__name__)

MOST_AUTO: Final = 8
NumWorkers = int | Literal["auto"]


def start_maker(recipes: Mapping[Phase, Recipe], num_workers: NumWorkers = "auto") -> Maker:
    """A maker of the batches of these phases, started; close it when the work is over.

    ``num_workers=0`` makes them on the thread that asks; n spawns n processes. Where this program cannot have
    processes (no ``if __name__ == "__main__"``, a notebook), a thread makes them, and a warning in the log says why;
    with ``"auto"`` also where the dataset cannot be given to a process. UsageError where `num_workers` is no such
    number, or is one and the dataset cannot be given to a process.
    """
    for recipe in recipes.values():
        check_transfer_dtype(recipe.transfer_dtype)
    wanted = count_workers(recipes, num_workers)
    if wanted == 0:
        return InlineMaker(recipes)
    if note := why_not_processes():
        return _thread(recipes, note)
    processes = ProcessMaker(recipes, wanted)
    try:
        processes.start()
    except UsageError as error:
        if num_workers != "auto":
            raise
        return _thread(recipes, f"a thread makes the batches: {error}")
    return processes


def _thread(recipes: Mapping[Phase, Recipe], why: str) -> ThreadMaker:
    logger.warning("%s", why)
    thread = ThreadMaker(recipes)
    thread.start()
    return thread


def count_workers(recipes: Mapping[Phase, Recipe], num_workers: NumWorkers) -> int:
    """How many worker processes: ``"auto"`` is one a processor, at most 8.

    ``"auto"`` is none where batches are rows of arrays as they are (a process costs seconds to start, such a batch
    microseconds), and one where every dataset is iterable: only one worker can read a stream.
    """
    if num_workers != "auto":
        if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0:
            raise UsageError(
                f'num_workers is {num_workers!r}: give "auto", 0 for none, or a number of processes'
            )
        return num_workers
    if all(_is_light(recipe) for recipe in recipes.values()):
        return 0
    if all(is_stream(recipe.dataset) for recipe in recipes.values()):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_AUTO)


def _is_light(recipe: Recipe) -> bool:
    return (
        isinstance(recipe.dataset, Columns) and recipe.collate_fn is None and recipe.preprocessing_fn is None
    )
