"""Worker processes that load leaves, for datasets that take long to read or transform."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from manyhands.errors import BadSample, RunFailed, UsageError
from manyhands.training.workers import begin_worker, why_not_processes

T = TypeVar("T")
Load = Callable[[int, tuple[int, ...]], T]
"""What a worker does: ``load(epoch, indices)``, the same in every process."""

_mine: Load[object] | None = None
"""In a worker process: what it was made for."""


class Loaders:
    """``num_workers`` processes (or threads) that run one function."""

    def __init__(self, load: Load[T], num_workers: int) -> None:
        self._load: Load[T] = load
        self._num_workers = num_workers
        self._executor: Executor | None = None
        self.note: str | None = None
        """Why the workers are threads, if they are."""

    def start(self) -> None:
        """Make the workers; processes start with the first leaves."""
        self.note = why_not_processes()
        if self.note is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(
                self._num_workers, context, initializer=_begin, initargs=(self._load,)
            )
        else:
            self._executor = ThreadPoolExecutor(self._num_workers, thread_name_prefix="manyhands-loader")

    def map(self, epoch: int, leaves: Sequence[tuple[int, ...]]) -> list[T]:
        """Every leaf, in order. BadSample names the first bad item; UsageError what a process cannot be given."""
        assert self._executor is not None, "start() comes first"
        try:
            load = None if self.note is None else self._load  # a process has it already
            futures = [self._executor.submit(_run, load, epoch, leaf) for leaf in leaves]
        except Exception as error:
            raise UsageError(
                f"the dataset or collate_fn cannot be given to a worker process ({type(error).__name__}: {error}): "
                "define them at the top of a module, or give num_workers=0"
            ) from error
        return [self._result(future) for future in futures]

    def _result(self, future: Future[Any]) -> Any:
        try:
            result = future.result()
        except BrokenProcessPool as error:
            raise RunFailed(
                "a process that loads data died (out of memory, or a fault in native code of the dataset): give "
                "fewer num_workers, or 0 to see it happen here"
            ) from error
        if isinstance(result, _Bad):
            raise BadSample(result.message, result.index) from RuntimeError(result.cause)
        return result

    def close(self) -> None:
        """End the workers; what they load now is waited for."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)


class _Bad:
    """A BadSample on its way between processes."""

    def __init__(self, error: BadSample) -> None:
        self.message, self.index, self.cause = str(error), error.index, str(error.__cause__)


def _begin(load: Load[object]) -> None:
    """In a new worker process."""
    begin_worker()
    global _mine
    _mine = load


def _run(load: Load[object] | None, epoch: int, indices: tuple[int, ...]) -> object:
    load = load or _mine
    assert load is not None
    try:
        return load(epoch, indices)
    except BadSample as error:
        return _Bad(error)
