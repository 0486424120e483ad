"""One batch, made: samples fetched, bad ones left out and named, the rest collated, preprocessed, narrowed.

The same in a worker process, in a thread and in the caller. Knows recipes, not queues or shared memory.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from manyhands.errors import UsageError
from manyhands.split.data.columns import Columns
from manyhands.split.data.streams import EndOfStream, Reader, is_stream
from manyhands.split.jobs import Fault, Made, Phase, Work
from manyhands.split.narrow import narrow
from manyhands.split.recipe import Recipe, Seeding
from manyhands.training.seeds import generators

_SHOWN_CHARACTERS = 200
_TRACE_CHARACTERS = 4000


class Assembler:
    """Makes batches one at a time; holds the streams that it is in the middle of."""

    def __init__(self, recipes: Mapping[Phase, Recipe], seeding: Seeding = generators) -> None:
        self._recipes = recipes
        self._seeding = seeding
        self._readers: dict[Phase, tuple[int, Reader]] = {}

    def make(self, work: Work) -> Made:
        """The batch of `work`.

        A sample that raises is a Fault. UsageError where the samples do not make one batch, or do not fit
        `transfer_dtype`: that is no single sample's fault.
        """
        recipe = self._recipes[work.phase]
        if isinstance(recipe.dataset, Columns) and recipe.collate_fn is None:
            return self._made(recipe, work, recipe.dataset.rows(work.indices), work.indices, [])
        samples, indices, faults = self._samples(recipe, work)
        if not samples:
            return Made(work, None, (), tuple(faults))
        try:
            batch = recipe.collated(work.epoch, work.indices[0], samples, self._seeding)
        except Exception as error:  # the user's code and data
            said = f"{type(error).__name__}: {str(error)[:_SHOWN_CHARACTERS]}"
            raise UsageError(
                f"the samples {str(indices)[:_SHOWN_CHARACTERS]} of the {work.phase} data do not make one batch "
                f"({said}): give samples of one shape, or a collate_fn that pads them"
            ) from error
        if batch is None:
            raise UsageError(
                f"collate_fn returned None for batch {work.sequence} of the {work.phase} data: return the batch"
            )
        return self._made(recipe, work, batch, tuple(indices), faults)

    def _made(
        self, recipe: Recipe, work: Work, batch: Any, indices: tuple[int, ...], faults: list[Fault]
    ) -> Made:
        try:
            batch = recipe.preprocessed(work.epoch, work.indices[0], batch, self._seeding)
        except Exception as error:  # the user's code
            raise UsageError(
                f"preprocessing_fn raised on batch {work.sequence} of epoch {work.epoch} of the {work.phase} data (it "
                f"gets whole batches, the samples on the first dimension): {told(error)}"
            ) from error
        if batch is None:
            raise UsageError(
                f"preprocessing_fn returned None for batch {work.sequence} of the {work.phase} data: return what the "
                "batch is to be, as (x, y)"
            )
        narrowed, widths = narrow(batch, recipe.transfer_dtype)
        return Made(work, narrowed, indices, tuple(faults), widths)

    def _samples(self, recipe: Recipe, work: Work) -> tuple[list[Any], list[int], list[Fault]]:
        reader = self._reader(recipe, work) if is_stream(recipe.dataset) else None
        samples, indices, faults = list[Any](), list[int](), list[Fault]()
        for index in work.indices:
            try:
                if reader is None:
                    samples.append(recipe.sample(work.epoch, index, self._seeding))
                else:
                    samples.append(reader.read(index))
                indices.append(index)
            except EndOfStream as end:
                faults.append(Fault(index, f"{end}, and more were announced: give it the right __len__"))
            except Exception as error:  # noqa: BLE001 - the user's code: anything may come out of it
                faults.append(Fault(index, told(error)))
        return samples, indices, faults

    def _reader(self, recipe: Recipe, work: Work) -> Reader:
        """The open pass over this phase's stream; that of another epoch is dropped."""
        epoch, reader = self._readers.get(work.phase, (-1, None))
        if reader is None or epoch != work.epoch:

            def seeding(index: int) -> AbstractContextManager[None]:
                return self._seeding(recipe.item_seed(work.epoch, index))

            reader = Reader(recipe.dataset, seeding)
            self._readers[work.phase] = work.epoch, reader
        return reader


def told(error: Exception) -> str:
    """An error of the user's code as text: what it says first, then where it was raised."""
    trace = "".join(traceback.format_exception(error))
    return f"{type(error).__name__}: {error}\n{trace[-_TRACE_CHARACTERS:]}"
