"""``CPULoader``: the machine with the data, as users start it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
from torch import Tensor

from manyhands.clock import Clock, SystemClock
from manyhands.errors import UsageError
from manyhands.fleet.signals import Signals
from manyhands.settings import checks, load
from manyhands.settings.defaults import default, settled
from manyhands.split import calling
from manyhands.split.data import dataset_length, is_stream, open_dataset, split_dataset
from manyhands.split.delivery import Assignment, JobOver
from manyhands.split.doors import Door, ListeningDoor
from manyhands.split.errand import Errand, OnRows
from manyhands.split.fingerprint import fingerprint
from manyhands.split.inference.collecting import InOrder
from manyhands.split.inference.sinks import open_sink
from manyhands.split.inference.wishes import Wishes
from manyhands.split.jobs import Mode, Phase
from manyhands.split.making.starting import count_workers
from manyhands.split.meeting import log_file
from manyhands.split.messages import Hello
from manyhands.split.narrow import check_transfer_dtype
from manyhands.split.recipe import PreprocessingFn, Recipe
from manyhands.split.terms import Share, Terms
from manyhands.split.training.record import History, empty_history
from manyhands.split.training.weights import read_weights, write_weights
from manyhands.training.stopping import early_stopping as early_stopping_rule

DEFAULT_BATCH_SIZE: Final = 64
_PER_WORKER: Final = 2
"""Batches that a worker may be at or have done, as a local DataLoader's."""
_AHEAD: Final = 2
"""... and besides: one on its way, one to be sent next."""

_CALLS: Final[dict[Mode, str]] = {
    "training": "start_training()",
    "validation": 'start_service(mode="validation")',
    "inference": 'start_service(mode="inference")',
}
"""What the trainer runs for each mode."""


class CPULoader:
    """Loads and preprocesses, for a trainer that computes; dials it, or waits for it to dial.

    ``num_workers`` processes make batches; ``"auto"`` is one a core, 0 none. ``invite`` is the ``mh://`` line that
    the trainer printed, or ``@file``; without one, MANYHANDS_INVITE, or what a trainer of yours on this machine left.
    Constructing stores.
    """

    def __init__(
        self,
        num_workers: int | str = default("training.num_workers"),
        *,
        invite: str | None = None,
        secure: bool = True,
    ) -> None:
        self.num_workers = num_workers
        self.secure = secure
        self._given_invite = invite
        self._clock: Clock = SystemClock()
        self._recipes: dict[Phase, Recipe] = {}
        self._batch_size: int | None = None
        self._shuffle = False
        self._errand: Errand | None = None
        self._door: ListeningDoor | None = None
        self._weights_to_send: dict[str, Tensor] | None = None
        self._weights: dict[str, Tensor] | None = None

    # ---- the data ----

    def setup_dataset(
        self,
        dataset: Any,
        batch_size: int = default("training.batch_size"),
        shuffle: bool = True,
        preprocessing_fn: PreprocessingFn | Mapping[str, PreprocessingFn] | None = None,
        val_split: float = 0.0,
        val_dataset: Any = None,
        *,
        transfer_dtype: str | None = default("data.transfer_dtype"),
        collate_fn: Callable[[list[Any]], Any] | None = None,
        seed: int = 0,
    ) -> None:
        """Say what is loaded, and how.

        ``dataset`` is a torch Dataset, arrays ``(X, y)``, or the path of a .csv (the last column is the target), .npy,
        .npz or .parquet file. ``preprocessing_fn(x, y)`` gets training's batches; a dict by phase ("train", "val",
        "infer") gives each its own. ``val_split`` keeps that share for validation, ``val_dataset`` is one of its own.
        ``transfer_dtype`` ("uint8", "float16", "bfloat16") narrows inputs on the wire, and the trainer widens them.
        ``seed`` decides the order and every random number that samples draw. UsageError for what cannot be.
        """
        size = settled(batch_size)
        checks.whole("batch_size", size, 1)
        checks.whole("seed", seed, -(1 << 62), 1 << 62)
        checks.callables(collate_fn=collate_fn)
        narrow = settled(transfer_dtype)
        check_transfer_dtype(narrow)
        prepare = _by_phase(preprocessing_fn)
        given = open_dataset(dataset)
        if val_split and val_dataset is not None:
            raise UsageError("give val_split or val_dataset, not both")
        sets: dict[Phase, Any] = {"train": given}
        if val_split:
            sets["train"], sets["val"] = split_dataset(given, val_split, seed)
        elif val_dataset is not None:
            sets["val"] = open_dataset(val_dataset, "val_dataset")
        self._recipes = {
            phase: Recipe(data, seed, collate_fn, prepare.get(phase), narrow) for phase, data in sets.items()
        }
        self._base = Recipe(given, seed, collate_fn, None, narrow)
        self._prepare = prepare
        self._batch_size, self._shuffle = size, bool(shuffle)

    # ---- jobs ----

    def start_loading(
        self,
        gpu_host: calling.Trainers | None = None,
        epochs: int = default("training.epochs"),
        gpu_port: int = default("network.port"),
        early_stopping: dict[str, Any] | None = None,
        *,
        listen_port: int | None = None,
    ) -> History:
        """Feed a training job until it is over; its history, as the trainer has it.

        ``gpu_host`` is where the trainer listens; a list are the ranks of one job, each of which gets its own batches.
        Without one this loader listens on ``listen_port``. ``early_stopping`` is ``{"monitor": "val_loss", "patience":
        5, "min_delta": 0.001, "restore_best": True}``. A trainer that is away is waited for. After `stop` the history
        is empty.
        """
        recipes = self._require()
        count = settled(epochs)
        checks.whole("epochs", count, 1)
        early_stopping_rule(early_stopping)
        if early_stopping is not None and "val" not in recipes:
            raise UsageError(
                "early_stopping needs validation data: give setup_dataset val_split or val_dataset"
            )
        shuffle = self._shuffle and not is_stream(recipes["train"].dataset)
        terms = msgspec.structs.replace(
            self._terms("training", recipes, None),
            shuffle=shuffle,
            epochs=count,
            early_stopping=early_stopping,
        )
        if gpu_host is not None and listen_port is not None:
            raise UsageError("give gpu_host to dial the trainer, or listen_port to wait for it, not both")
        if gpu_host is not None:
            doors = self._dialled(gpu_host, gpu_port, "training")
        else:
            port = settled(gpu_port) if listen_port is None else listen_port
            self._door = calling.listening(port, secure=self.secure, clock=self._clock)
            doors = [self._door]
        overs = self._run(recipes, terms, doors)
        if overs is None:
            return empty_history()
        self._weights = overs[0].weights
        return dict(overs[0].result or {})

    def run_validation(
        self,
        gpu_host: str | None,
        val_dataset: Any = None,
        batch_size: int | None = None,
        gpu_port: int = default("network.port"),
    ) -> dict[str, Any]:
        """The scores of the trainer's model on ``val_dataset``, or on what `setup_dataset` was given for it.

        ``total_samples, total_batches, average_loss`` (a mean over samples) and ``detailed_results``; ``accuracy`` and
        ``top5_accuracy`` where the targets are classes. The trainer runs ``start_service(mode="validation")``.
        """
        recipe = self._recipe("val", val_dataset, "val_dataset")
        terms = self._terms("validation", {"val": recipe}, batch_size)
        overs = self._run({"val": recipe}, terms, self._dialled(gpu_host, gpu_port, "validation"))
        return {} if overs is None else dict(overs[0].result or {})

    def run_inference(
        self,
        gpu_host: str | None,
        inference_dataset: Any = None,
        batch_size: int | None = None,
        top_k: int = 1,
        gpu_port: int = default("network.port"),
        return_details: bool = False,
        return_full_probabilities: bool = False,
        return_raw_outputs: bool = False,
        confidence_threshold: float = 0.0,
        *,
        output: str | Path | None = None,
    ) -> dict[str, Any]:
        """What the trainer's model says of each sample, as arrays; rows below ``confidence_threshold`` are dropped.

        ``indices`` are those of the dataset. ``output`` is a folder that the columns are written to as they come, in
        bounded memory; where it holds a part of this inference, it goes on there. The trainer runs
        ``start_service(mode="inference")``.
        """
        recipe = self._recipe("infer", inference_dataset, "inference_dataset")
        wishes = Wishes(
            top_k, confidence_threshold, return_details, return_full_probabilities, return_raw_outputs
        )
        plain = msgspec.to_builtins(wishes)
        terms = msgspec.structs.replace(self._terms("inference", {"infer": recipe}, batch_size), wishes=plain)
        config = {**plain, "batch_size": terms.batch_size}
        sink = open_sink(output, wishes, config, terms.lengths["infer"], self._clock)
        try:
            doors, starts = self._dialled(gpu_host, gpu_port, "inference"), {"infer": sink.next_sequence}
            overs = self._run({"infer": recipe}, terms, doors, InOrder(sink).add, starts)
            return {} if overs is None else sink.finish()
        finally:
            sink.close()

    def stop(self) -> None:
        """End the job that runs; what is leased here is for others. From any thread, at once."""
        if self._errand is not None:
            self._errand.stop()

    # ---- weights ----

    def save_model(self, path: str | Path) -> None:
        """Write the weights that the last training job ended with, as one safetensors file.

        UsageError where no training job has ended here, or its model was too large to come along.
        """
        if self._weights is None:
            raise UsageError(
                "there are no weights here: a training job's come when it ends, if they are under 512 MiB; else save "
                "them on the trainer's side, with trainer.save(path)"
            )
        write_weights(Path(path), self._weights)

    def load_model(self, path: str | Path) -> None:
        """Read weights from a safetensors file; the next job's model begins with them."""
        self._weights_to_send = read_weights(Path(path))

    # ---- views, while start_loading listens ----

    @property
    def invite(self) -> str:
        """The invite that a trainer dials with, ``mh://…``; it holds a secret."""
        if self._door is None or self._door.invite is None:
            raise UsageError("there is no invite before start_loading(listen_port=...) listens securely")
        return str(self._door.invite)

    @property
    def port(self) -> int | None:
        """The port that this loader listens on; None while it does not."""
        return None if self._door is None or not self._door.is_up else self._door.address[1]

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that a trainer dials."""
        if self._door is None:
            raise UsageError("there is no address before start_loading(listen_port=...) listens")
        return self._door.address

    # ---- inside ----

    def _require(self) -> dict[Phase, Recipe]:
        if not self._recipes:
            raise UsageError("this loader has no data: call setup_dataset(dataset) first")
        return self._recipes

    def _recipe(self, phase: Phase, given: Any, name: str) -> Recipe:
        """The recipe of a job of one phase: of `given`, else of what was set up for it."""
        if given is None:
            ready = self._require().get(phase)
            return ready if ready is not None else self._changed(phase, self._base.dataset)
        return self._changed(phase, open_dataset(given, name))

    def _changed(self, phase: Phase, dataset: Any) -> Recipe:
        if not self._recipes:
            return Recipe(dataset)
        base = self._base
        return Recipe(dataset, base.seed, base.collate_fn, self._prepare.get(phase), base.transfer_dtype)

    def _terms(self, mode: Mode, recipes: Mapping[Phase, Recipe], batch_size: int | None) -> Terms:
        size = batch_size if batch_size is not None else self._batch_size or DEFAULT_BATCH_SIZE
        checks.whole("batch_size", size, 1)
        lengths = {phase: dataset_length(recipe.dataset, phase) for phase, recipe in recipes.items()}
        seed = next(iter(recipes.values())).seed
        return Terms(mode, lengths, size, seed=seed, fingerprint=fingerprint(recipes))

    def _dialled(self, gpu_host: calling.Trainers | None, gpu_port: int, mode: Mode) -> list[Door]:
        if gpu_host is None:
            raise UsageError(
                "give gpu_host, the address of the trainer: only start_loading can listen instead"
            )
        settings, port = load(split=True), settled(gpu_port)
        return [
            calling.dialling(
                address,
                port,
                _CALLS[mode],
                self._given_invite,
                settings,
                secure=self.secure,
                clock=self._clock,
            )
            for address in calling.addresses(gpu_host)
        ]

    def _run(
        self,
        recipes: Mapping[Phase, Recipe],
        terms: Terms,
        doors: list[Door],
        on_rows: OnRows | None = None,
        starts: dict[str, int] | None = None,
    ) -> list[JobOver] | None:
        """Do a job; how it ended at each trainer, None after `stop`."""
        if self._errand is not None:
            raise UsageError("this loader is at work already: stop() it first, or make another one")
        settings = load(split=True)
        workers = count_workers(recipes, settled(self.num_workers))
        hello = Hello(
            terms,
            socket.gethostname()[:64],
            _PER_WORKER * workers + _AHEAD,
            starts or {},
            self._weights_to_send is not None,
        )
        assignments = [
            Assignment(
                rank,
                _of_share(hello, Share(rank, len(doors))),
                self._weights_to_send,
                settings.data.on_bad_sample == "stop",
            )
            for rank in range(len(doors))
        ]
        self._errand = Errand(
            recipes, workers, doors, assignments, self._clock, settings.network.wait_timeout, on_rows
        )
        try:
            with log_file(settings), Signals(self.stop, "handing back what is leased") as signals:
                overs = self._errand.run()
        finally:
            self._errand = self._door = None
        signals.end()
        self._weights_to_send = None
        return overs


def _by_phase(
    given: PreprocessingFn | Mapping[str, PreprocessingFn] | None,
) -> dict[Phase, PreprocessingFn]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        checks.callables(preprocessing_fn=given)
        return {"train": given}
    strangers = sorted(set(given) - set(get_args(Phase)))
    if strangers:
        raise UsageError(f"preprocessing_fn has {strangers}: its phases are {', '.join(get_args(Phase))}")
    checks.callables(**{f"preprocessing_fn[{phase!r}]": function for phase, function in given.items()})
    return {phase: given[phase] for phase in get_args(Phase) if phase in given}


def _of_share(hello: Hello, share: Share) -> Hello:
    terms = msgspec.structs.replace(hello.terms, share=share)
    return msgspec.structs.replace(hello, terms=terms, capacity=max(_AHEAD, hello.capacity // share.trainers))
