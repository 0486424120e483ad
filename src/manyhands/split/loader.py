"""``CPULoader``: the machine with the data, as users start it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from manyhands.clock import Clock, SystemClock
from manyhands.errors import UsageError
from manyhands.fleet.signals import Signals
from manyhands.settings import load
from manyhands.settings.defaults import default, settled
from manyhands.split import calling
from manyhands.split.assigning import assignments
from manyhands.split.delivery.events import JobOver
from manyhands.split.doors import Door, ListeningDoor
from manyhands.split.errand import Errand, OnRows
from manyhands.split.inference.collecting import InOrder
from manyhands.split.inference.sinks import open_sink
from manyhands.split.inference.wishes import Wishes
from manyhands.split.jobs import Mode, Phase
from manyhands.split.making.starting import count_workers
from manyhands.split.meeting import log_file
from manyhands.split.recipe import PreprocessingFn, Recipe
from manyhands.split.supply import Supply
from manyhands.split.terms import Terms
from manyhands.split.training.record import History, empty_history
from manyhands.split.training.scores import Scores
from manyhands.split.training.weights import read_weights, write_weights


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
        self._supply = Supply()
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
        size, dtype = settled(batch_size), settled(transfer_dtype)
        self._supply = Supply.of(
            dataset, size, shuffle, preprocessing_fn, val_split, val_dataset, dtype, collate_fn, seed
        )

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
        recipes, terms = self._supply.training(settled(epochs), early_stopping)
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
        gpu_host: calling.Trainers | None,
        val_dataset: Any = None,
        batch_size: int | None = None,
        gpu_port: int = default("network.port"),
    ) -> dict[str, Any]:
        """The scores of the trainer's model on ``val_dataset``, or on what `setup_dataset` was given for it.

        ``total_samples, total_batches, average_loss`` (a mean over samples) and ``detailed_results``; ``accuracy`` and
        ``top5_accuracy`` where the targets are classes. The trainer runs ``start_service(mode="validation")``; a list
        of trainers share the batches.
        """
        recipe = self._supply.recipe("val", val_dataset, "val_dataset")
        terms = self._supply.terms("validation", {"val": recipe}, batch_size)
        overs = self._run({"val": recipe}, terms, self._dialled(gpu_host, gpu_port, "validation"))
        return {} if overs is None else Scores.together([over.result or {} for over in overs]).result()

    def run_inference(
        self,
        gpu_host: calling.Trainers | None,
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
        ``start_service(mode="inference")``; a list of trainers share the batches.
        """
        recipe = self._supply.recipe("infer", inference_dataset, "inference_dataset")
        wishes = Wishes(
            top_k, confidence_threshold, return_details, return_full_probabilities, return_raw_outputs
        )
        plain = msgspec.to_builtins(wishes)
        terms = self._supply.terms("inference", {"infer": recipe}, batch_size, wishes=plain)
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

    def _dialled(self, gpu_host: calling.Trainers | None, gpu_port: int, mode: Mode) -> list[Door]:
        port = settled(gpu_port)
        return calling.doors(gpu_host, port, mode, self._given_invite, secure=self.secure, clock=self._clock)

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
        settings, num_workers = load(split=True), settled(self.num_workers)
        workers, stops = count_workers(recipes, num_workers), settings.data.on_bad_sample == "stop"
        weights = self._weights_to_send
        given = assignments(terms, len(doors), workers, starts or {}, weights, stops_on_fault=stops)
        self._errand = Errand(
            recipes, num_workers, doors, given, self._clock, settings.network.wait_timeout, on_rows
        )
        try:
            with log_file(settings), Signals(self.stop, "handing back what is leased") as signals:
                overs = self._errand.run()
        finally:
            self._errand = self._door = None
        signals.end()
        self._weights_to_send = None
        return overs
