"""``GPUTrainer``: the machine that trains, validates or infers, as users start it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from manyhands.clock import Clock, SystemClock
from manyhands.errors import ManyhandsError, UsageError
from manyhands.fleet.signals import Signals
from manyhands.observe.waiting import tell
from manyhands.settings import checks, load
from manyhands.settings.defaults import default, settled
from manyhands.split.doors import DiallingDoor, ListeningDoor
from manyhands.split.jobs import Mode
from manyhands.split.meeting import announce, bounds_of, dialling, listening, log_file
from manyhands.split.reception import Reception
from manyhands.split.service import Keeping, Service
from manyhands.split.training.learner import Learner
from manyhands.split.training.record import History, empty_history
from manyhands.split.training.saving import Resume
from manyhands.split.training.setup import Setup
from manyhands.split.training.weights import put_weights, read_weights, write_weights
from manyhands.training.device import pick_device
from manyhands.training.state import ModelState
from manyhands.training.step import Precision

logger = logging.getLogger(__name__)


class GPUTrainer:
    """Computes with batches that loaders make; listens on `port`, or dials a loader that listens.

    ``device`` is ``"auto"`` (CUDA before MPS before CPU) or a torch device; ``port=0`` picks a free one. ``host``
    None listens on all interfaces when ``secure``, else on loopback; off loopback needs ``secure``. ``invite`` is for
    a trainer that dials. ``checkpoint_dir`` None keeps no checkpoints; ``checkpoint_interval`` is in minutes;
    ``resume`` is True, False or ``"auto"``. ``log`` is ``"tensorboard:DIR"``, ``"csv:FILE"`` or ``"jsonl:FILE"``.
    Constructing stores; `start_training` and `start_service` listen.
    """

    def __init__(
        self,
        port: int = default("network.port"),
        device: str | torch.device | None = default("gpu.device"),  # noqa: B008 - as below
        *,
        host: str | None = None,
        secure: bool = True,
        invite: str | None = None,
        checkpoint_dir: str | Path | None = None,
        checkpoint_interval: float = 5,
        resume: Resume = False,
        log: str | None = None,
    ) -> None:
        self.port = port
        self.device = device
        self.host = host
        self.secure = secure
        self.checkpoint_dir = Path(checkpoint_dir) if checkpoint_dir is not None else None
        self.checkpoint_interval = checkpoint_interval
        self.resume: Resume = resume
        self.log = log
        self._given_invite = invite
        self._clock: Clock = SystemClock()
        self._learner: Learner | None = None
        self._reception: Reception | None = None
        self._door: ListeningDoor | None = None
        self._stopping = threading.Event()

    # ---- the model ----

    def setup_model(
        self,
        model: nn.Module,
        optimizer: Any = None,
        criterion: Any = None,
        learning_rate: float = default("training.learning_rate"),
        *,
        scheduler: Callable[..., Any] | None = None,
        clip_norm: float | None = None,
        precision: Precision = default("gpu.mixed_precision"),  # noqa: B008 - a constant that is marked
        compile: bool | str = default("gpu.compile_model"),  # noqa: A002 - torch's own word
        compute_loss: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        """Say what is computed; validation and inference need no more than the model.

        ``optimizer`` is an Optimizer over the model's parameters or ``callable(params)``; None is
        ``AdamW(params, lr=learning_rate, weight_decay=0.01)``. ``criterion(output, targets)`` gives a scalar; None
        takes ``output.loss``, else cross-entropy. ``scheduler(optimizer)`` gives an LRScheduler that is stepped once a
        step, a ``ReduceLROnPlateau`` once an epoch. ``clip_norm`` bounds the gradients' norm. ``compile`` True is
        ``torch.compile``, a name its backend. ``compute_loss(model, batch)`` replaces forward and criterion and
        returns the loss, or ``(loss, output)``. There is no other scheduler, clipping, normalisation or noise.
        UsageError for what cannot be.
        """
        setup = Setup(
            model,
            optimizer,
            criterion,
            settled(learning_rate),
            scheduler,
            clip_norm,
            settled(precision),
            settled(compile),
            compute_loss,
        )
        setup.check()
        device = settled(self.device)
        self._learner = Learner(setup, pick_device(device))

    @property
    def model(self) -> nn.Module:
        """The model, with the weights as they are now."""
        return self._ready().setup.model

    def save(self, path: str | Path) -> None:
        """Write the weights as one safetensors file, by the model's own names, tied ones once."""
        write_weights(Path(path), ModelState(self.model).named_once()[0])

    def load(self, path: str | Path) -> None:
        """Read weights that `save`, a checkpoint or safetensors itself wrote; UsageError for another model's."""
        put_weights(read_weights(Path(path)), self.model)

    # ---- running ----

    def start_training(self, cpu_host: str | None = None, *, cpu_port: int | None = None) -> History:
        """Wait for loaders, train the job they bring, and return its history.

        Without ``cpu_port`` it listens, and ``cpu_host`` is only named while it waits; with it, it dials the loader at
        ``cpu_host:cpu_port``. The history has ``train_loss``, ``val_loss``, ``val_accuracy`` and ``epochs``, an entry
        an epoch. After `stop` or Ctrl-C it is the history so far, and what was trained is saved where there is a
        ``checkpoint_dir``.
        """
        self._check()
        with self._receiving("training", cpu_host, cpu_port) as reception:
            job = reception.next_job()
            return empty_history() if job is None else self._service().train(job)

    def start_service(self, mode: Mode = "validation") -> None:
        """Serve one job after another, until `stop` or Ctrl-C: ``"validation"``, ``"inference"`` or ``"training"``.

        A job that fails is told so, and the next one is served.
        """
        if mode not in get_args(Mode):
            raise UsageError(f"mode={mode!r} is not one of {', '.join(map(repr, get_args(Mode)))}")
        self._check()
        with self._receiving(mode, None, None) as reception:
            service = self._service()
            while not self._stopping.is_set() and (job := reception.next_job()) is not None:
                try:
                    service.do(job)
                except Exception as error:  # what one job brings must not end the service for others
                    tell(f"a job of {mode} failed, and the next one may come: {_first_line(error)}")
                    logger.info("a job of %s failed", mode, exc_info=True)

    def stop(self) -> None:
        """End after the batch that is computed now, saving it; from any thread. Returns at once."""
        self._stopping.set()
        if self._reception is not None:
            self._reception.stop()

    # ---- views ----

    @property
    def invite(self) -> str:
        """The invite that loaders join with, ``mh://…``; it holds a secret."""
        if self._door is None or self._door.invite is None:
            raise UsageError("there is no invite before start_training() or start_service() listens securely")
        return str(self._door.invite)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that loaders dial."""
        if self._door is None:
            raise UsageError("there is no address before start_training() or start_service()")
        return self._door.address

    # ---- inside ----

    def _ready(self) -> Learner:
        if self._learner is None:
            raise UsageError("this trainer has no model: call setup_model(model) first")
        return self._learner

    def _check(self) -> None:
        """UsageError for what would only fail when it is used first, hours from now."""
        self._ready()
        checks.number("checkpoint_interval", self.checkpoint_interval, 0.0, above=True)
        if self.resume not in (True, False, "auto"):
            raise UsageError(f'resume={self.resume!r} must be True, False or "auto"')
        if self.resume and self.checkpoint_dir is None:
            raise UsageError(f"resume={self.resume!r} needs a checkpoint_dir")
        if self._reception is not None:
            raise UsageError("this trainer is running already: stop() it first, or make another one")

    @contextmanager
    def _receiving(self, mode: Mode, cpu_host: str | None, cpu_port: int | None) -> Iterator[Reception]:
        """The reception of this trainer, open; a first Ctrl-C drains, and ends the process afterwards."""
        self._stopping.clear()
        self._ready().place()
        settings = load(split=True)
        door: ListeningDoor | DiallingDoor
        if cpu_port is None:
            self._door = door = listening(
                mode, self.host, settled(self.port), secure=self.secure, cpu_host=cpu_host, clock=self._clock
            )
        else:
            checks.whole("cpu_port", cpu_port, 1, 65535)
            host = cpu_host or "localhost"
            door = dialling(
                host, cpu_port, self._given_invite, settings, secure=self.secure, clock=self._clock
            )
        self._reception = Reception(mode, [door], bounds_of(settings), self._clock, self._ready().device)
        with log_file(settings), Signals(self.stop, "ending after this batch, and saving") as signals:
            try:
                with self._reception:
                    self._announce(door, mode)
                    yield self._reception
            finally:
                self._reception = None
        signals.end()

    def _announce(self, door: ListeningDoor | DiallingDoor, mode: Mode) -> None:
        """Say how loaders come here."""
        announce(door, mode)

    def _service(self) -> Service:
        keeping = None
        if self.checkpoint_dir is not None:
            keeping = Keeping(self.checkpoint_dir, self.resume, self.checkpoint_interval)
        return Service(self._ready(), self._clock, self._stopping, self.log, keeping)


def _first_line(error: Exception) -> str:
    """What one of ours says; of another one its kind too."""
    if isinstance(error, ManyhandsError):
        return str(error)
    return f"{type(error).__name__}: {error}".partition("\n")[0]
