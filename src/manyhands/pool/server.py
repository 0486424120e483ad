"""``CentralServer``: the coordinator of a pool, as users start it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from manyhands.clock import Clock, SystemClock
from manyhands.errors import RunFailed, UsageError
from manyhands.fleet.signals import Signals
from manyhands.observe.metrics import open_log
from manyhands.observe.progress import open_progress
from manyhands.pool import owner
from manyhands.pool.coordinator import Coordinator
from manyhands.pool.data import Source, dataset_length
from manyhands.pool.job import Job, prepare
from manyhands.pool.options import Data, Numerics, OnBadSample, OnNonFinite, PoolOptions
from manyhands.pool.run import Hooks, Run
from manyhands.pool.saving import Resume, Saver
from manyhands.pool.tally import Report, Tally
from manyhands.settings import checks, load
from manyhands.settings.paths import ensure_state_dir
from manyhands.tensors.memory import keep_freed_memory
from manyhands.training.step import Precision
from manyhands.training.stopping import EarlyStopping, early_stopping
from manyhands.wire.address import is_loopback, nearest
from manyhands.wire.admission import Role
from manyhands.wire.gate import Gate
from manyhands.wire.invite import Invite
from manyhands.wire.known import KnownFile
from manyhands.wire.listener import Listener


class CentralServer:
    """Trains `model` on `dataset` with every node that joins.

    ``batch_size`` is the global batch of one optimizer step, whatever the number of nodes; it is cut into
    ``micro_batches`` leaves, which are leased. ``optimizer`` is ``callable(params)`` or an Optimizer over the
    model's (Adam(1e-3)); ``scheduler`` is ``callable(optimizer)``, stepped once a step. ``criterion(output,
    targets)``: None takes ``output.loss``, else cross-entropy. ``checkpoint_interval`` is in minutes. ``ip``
    off loopback needs ``secure``; ``port=0`` picks a free one; ``advertise`` is the address put into invites.
    ``compression="int8"`` sends sums and weights as int8, of the same bits for any nodes, which are not fp32's.
    ``data="ship"`` sends batches; ``"local"`` sends indices to nodes that hold the dataset. ``resume`` is
    True, False or ``"auto"``. ``on_step(step=, epoch=, loss=, samples=)`` and ``on_epoch(epoch=, train_loss=,
    val_loss=, val_accuracy=)`` are called between steps; an exception in one stops the run. Constructing
    checks and stores; ``start`` listens.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Any,
        batch_size: int = 16,
        ip: str | None = "localhost",
        port: int = 5555,
        checkpoint_dir: str | Path = "checkpoints",
        checkpoint_interval: float = 5,
        secure: bool = True,
        queue_size: int = 1000,
        criterion: Any = None,
        *,
        optimizer: Any = None,
        scheduler: Callable[..., Any] | None = None,
        epochs: int = 1,
        max_steps: int | None = None,
        micro_batches: int = 4,
        shuffle: bool = True,
        drop_last: bool = False,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_dataset: Any = None,
        val_every: int | None = None,
        early_stopping: dict[str, Any] | None = None,
        clip_norm: float | None = None,
        precision: Precision = "fp32",
        weight: Callable[[Any], float] | None = None,
        aggregation: Literal["sync"] = "sync",
        compression: Literal["int8"] | None = None,
        data: Data = "ship",
        numerics: Numerics = "tolerant",
        verify: float = 0.0,
        on_nonfinite: OnNonFinite = "stop",
        on_bad_sample: OnBadSample = "stop",
        on_step: Callable[..., Any] | None = None,
        on_epoch: Callable[..., Any] | None = None,
        log: str | None = None,
        advertise: str | None = None,
        resume: Resume = False,
    ) -> None:
        self.model = model
        self._dataset = dataset
        self._criterion = criterion
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._options = PoolOptions(
            batch_size,
            micro_batches,
            epochs,
            max_steps,
            shuffle,
            drop_last,
            seed,
            num_workers,
            precision,
            clip_norm,
            aggregation,
            compression,
            data,
            numerics,
            verify,
            on_nonfinite,
            on_bad_sample,
            queue_size,
            checkpoint_interval,
            val_every,
            early_stopping,
            collate_fn,
            weight,
        )
        self._val_dataset = val_dataset
        self._callbacks = (on_step, on_epoch)
        self._log = log
        self.ip = ip
        self.port = port
        self.secure = secure
        self.checkpoint_dir = Path(checkpoint_dir)
        self.advertise = advertise
        self.resume: Resume = resume
        self.hold_for_nodes = 0
        """The first step waits for so many nodes, for comparisons that need them all."""
        self._clock: Clock = SystemClock()
        self._thread: threading.Thread | None = None
        self._up = threading.Event()
        self._over = threading.Event()
        self._run: Run | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._invite: Invite | None = None
        self._stop_asked = False
        self._outcome: Report | BaseException | None = None

    # ---- life ----

    def start(self, block: bool = True) -> Report | None:
        """Listen, train, return the report; with ``block=False`` return as soon as nodes can join.

        UsageError for impossible arguments or a port in use; RunFailed and its children where the run cannot
        go on. What was committed is saved in every case.
        """
        if self._thread is not None:
            raise UsageError(
                "this server was started before: make a new CentralServer, with resume=True to go on"
            )
        self._check()
        if self.ip is not None and not self.secure and not is_loopback(self.ip):
            raise UsageError(
                f"ip={self.ip!r} with secure=False would send weights and data in plain text over a "
                "network: leave secure=True, "
                "or listen on localhost"
            )
        job = prepare(
            self.model, self._dataset, self._criterion, self._optimizer, self._scheduler, self._options
        )
        self._thread = threading.Thread(
            target=self._main, args=(job,), name="manyhands-coordinator", daemon=True
        )
        self._thread.start()
        self._up.wait()
        if self._over.is_set() and isinstance(self._outcome, BaseException):
            raise self._outcome
        return self.wait() if block else None

    def _check(self) -> None:
        """UsageError for what would only fail when it is used first, hours from now."""
        checks.whole("port", self.port, 0, 65535)
        if self.resume not in (True, False, "auto"):
            raise UsageError(f'resume={self.resume!r} must be True, False or "auto"')
        on_step, on_epoch = self._callbacks
        factory = None if isinstance(self._optimizer, Optimizer) else self._optimizer
        checks.callables(on_step=on_step, on_epoch=on_epoch, criterion=self._criterion)
        checks.callables(optimizer=factory, scheduler=self._scheduler)
        if self._val_dataset is not None and dataset_length(self._val_dataset) < 1:
            raise UsageError("val_dataset is empty (len 0): leave it None to train without validation")

    def wait(self) -> Report:
        """Block until the run ends; its report, or its error."""
        if self._thread is None:
            raise UsageError("this server is not running: call start() first")
        with Signals(self.stop) as signals:
            self._over.wait()
        self._thread.join()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        signals.end()
        assert isinstance(self._outcome, Report)
        return self._outcome

    def stop(self) -> None:
        """Drain: save what is committed and let the nodes go. Returns at once; callable from any thread."""
        self._stop_asked = True
        if self._loop is not None and self._run is not None and not self._over.is_set():
            with contextlib.suppress(RuntimeError):  # the loop of a run that ended this moment
                self._loop.call_soon_threadsafe(self._run.stop)

    # ---- views ----

    @property
    def invite(self) -> str:
        """The line's invite, ``mh://…``; it holds a secret."""
        if self._invite is None:
            raise UsageError("there is no invite before start()")
        return str(self._invite)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that nodes dial."""
        if self._run is None:
            raise UsageError("there is no address before start()")
        return self._run.listener.address

    def status(self) -> dict[str, Any]:
        """Run, step, loss, nodes and ledger, as ``manyhands status --json`` prints them."""
        if self._run is None or self._loop is None:
            return {
                "run": None,
                "state": "new",
                "epoch": 0,
                "step": 0,
                "loss": None,
                "nodes": [],
                "ledger": {"applied": 0, "leased": 0, "reissued": 0, "refused": 0},
            }
        if self._over.is_set() or threading.current_thread() is self._thread:
            return owner.status(self._run)

        async def ask(run: Run) -> dict[str, Any]:
            return owner.status(run)

        return asyncio.run_coroutine_threadsafe(ask(self._run), self._loop).result()

    # ---- the coordinator's thread ----

    def _main(self, job: Job) -> None:
        keep_freed_memory()
        try:
            self._outcome = asyncio.run(self._serve(job))
        except BaseException as error:  # noqa: BLE001 - the thread's edge: wait() raises it in the caller's
            self._outcome = error
        finally:
            self._over.set()
            self._up.set()

    async def _serve(self, job: Job) -> Report:
        self._loop = asyncio.get_running_loop()
        early = self._early_stopping()
        saver, found = Saver.open(self.checkpoint_dir, self.resume, self._clock)
        gate = Gate(saver.path / "gate", self._clock)
        known: KnownFile | None = None
        listener: Listener | None = None
        try:
            step, tally = saver.restore(job, found, early) if found is not None else (0, Tally())
            job.master.moving.attach()
            job.feeder.start()
            coordinator = Coordinator(job, saver, saver.journal.begin_incarnation(), step, tally, self._clock)
            gate.open()
            hooks = self._hooks(early)
            listener = await self._listen(gate, coordinator, saver)
            run = Run(job, saver, coordinator, listener, gate, hooks, self._clock, self.hold_for_nodes)
            if self._stop_asked:
                run.stop()
            await run.begin()
            self._run = run
            known = self._announce(run, saver)
            self._up.set()
            return await run.main()
        finally:
            if listener is not None:
                await listener.stop(0.0)
            job.feeder.close()
            job.master.moving.detach()
            if known is not None:
                known.remove()
            gate.close()
            saver.journal.close()
            if self._run is None:
                saver.withdraw()

    async def _listen(self, gate: Gate, coordinator: Coordinator, saver: Saver) -> Listener:
        async def ask(peer: Any, request: bytes) -> bytes:
            if self._run is None:
                raise RunFailed("the run is only starting: ask again in a moment")
            return await self._run.ask(peer, request)

        ports = [self.port] if self.port else [saver.remembered_port(), 0]
        for port in ports:
            listener = Listener(
                gate,
                on_stream=coordinator.visits.serve,
                on_ask=ask,
                host=self.ip,
                port=port,
                secure=self.secure,
                advertise=self.advertise,
            )
            try:
                saver.remember_port(await listener.start())
                return listener
            except UsageError:
                if port == ports[-1]:
                    raise
        raise AssertionError("the last port raises")

    def _announce(self, run: Run, saver: Saver) -> KnownFile | None:
        loading = [run.job.feeder.note] if run.job.feeder.note else []
        for note in [*saver.notes, *run.job.notes, *loading]:
            print(f"manyhands: {note}", file=sys.stderr)  # noqa: T201 - what a user must see
        if not self.secure:
            return None
        self._invite = run.listener.invite(Role.NODE)
        host, port = run.listener.address
        mine = nearest(self.ip, host)
        known = KnownFile(ensure_state_dir(), port)
        known.write(self._invite, run.listener.invite(Role.OWNER, uses=100_000).with_address(mine, port))
        line = f"manyhands join {self._invite}"
        print(f"Paste this on each machine that should help:\n\n    {line}\n", flush=True)  # noqa: T201
        return known

    def _early_stopping(self) -> EarlyStopping | None:
        rule = early_stopping(self._options.early_stopping)
        if rule is not None and self._val_dataset is None:
            raise UsageError("early_stopping needs val_dataset")
        return EarlyStopping(**rule) if rule is not None else None

    def _hooks(self, early: EarlyStopping | None) -> Hooks:
        settings = load()
        options = self._options
        return Hooks(
            self._callbacks[0],
            self._callbacks[1],
            open_log(self._log) if self._log else None,
            open_progress(
                self._clock,
                bars=settings.monitoring.progress_bars,
                line_seconds=settings.advanced.plain_line_seconds,
            ),
            Source(self._val_dataset, options.collate_fn, options.seed)
            if self._val_dataset is not None
            else None,
            early,
        )
