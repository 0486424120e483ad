"""``LocalCluster``: a coordinator and nodes on this machine, as real processes that can be killed.

::

    with LocalCluster("server.py:build", nodes=3) as cluster:
        cluster.wait_step(5)
        cluster.kill(0)
        report = cluster.wait(60)

Its files (keys, invites, logs, checkpoints) lie in a private folder that goes with it. Loads no torch here.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import msgspec

from manyhands import errors
from manyhands.errors import ManyhandsError, RunFailed, Unreachable, UsageError
from manyhands.fleet import messages as m
from manyhands.settings.children import child_environment
from manyhands.testing.faults import Fault, Fired, to_plain
from manyhands.testing.process import Process, wait_for
from manyhands.wire import Role, dial, known_invite

_START_SECONDS = 90.0


class LocalCluster:
    """One run on this machine; leave the ``with`` block and every process of it is gone.

    ``target`` is ``module:name`` or ``path.py:name``: a ``CentralServer``, a dict of its arguments, or a
    function (given ``arguments``, which JSON must hold) that returns either; nodes take their model from it
    too, or from ``node_target``, which may also give a bare ``nn.Module``. Address, port and folders of the
    server are replaced; ``options`` replaces others of its arguments. Every process runs torch with
    ``threads`` threads, without this process's ``MANYHANDS_*`` variables, with ``env``, and loads the target
    under the same seed. ``faults`` holds a script for each of the first nodes, which start together when all
    have loaded; with ``holds`` the first step waits for them all; ``quiet`` drops the server's callbacks, log and
    validation.
    """

    def __init__(
        self,
        target: str,
        nodes: int = 2,
        *,
        arguments: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        node_target: str | None = None,
        checkpoint_dir: str | Path | None = None,
        resume: bool | Literal["auto"] = False,
        threads: int = 1,
        device: str = "cpu",
        env: Mapping[str, str] | None = None,
        faults: Sequence[Sequence[Fault]] = (),
        quiet: bool = False,
        holds: bool = False,
    ) -> None:
        self._order = {"target": _absolute(target), "arguments": dict(arguments or {}), "threads": threads}
        self._node_target = _absolute(node_target or target)
        self._options = dict(options or {})
        self._num_nodes = nodes
        self._checkpoint_dir = Path(checkpoint_dir) if checkpoint_dir is not None else None
        self._resume: bool | str = resume
        self._device = device
        self._env = dict(env or {})
        self._faults = [tuple(script) for script in faults]
        self._quiet = quiet
        self._hold_for_nodes = nodes if holds else 0
        self._folder: tempfile.TemporaryDirectory[str]
        self._starter: ThreadPoolExecutor
        self._coordinators: list[Process] = []
        self._nodes: list[Process] = []
        self._where: dict[str, Any] | None = None

    # ---- life ----

    def __enter__(self) -> LocalCluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start everything; returns when nodes can join."""
        self._folder = tempfile.TemporaryDirectory(prefix="manyhands-")
        # One thread starts every process and lives as long: Linux kills a child with the thread it came from.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="manyhands-starter")
        try:
            self._start_coordinator(self._resume, port=0)
            for number in range(self._num_nodes):
                self.start_node(faults=self._faults[number] if number < len(self._faults) else ())
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill what still runs and remove the folder."""
        for process in [*self._nodes, *self._coordinators]:
            process.close()
        self._starter.shutdown()
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        """The cluster's own folder, until it closes."""
        return Path(self._folder.name)

    @property
    def state_dir(self) -> Path:
        """Where its processes keep keys and invites: ``MANYHANDS_STATE_DIR`` for a command that joins in."""
        return self.folder / "state"

    @property
    def checkpoint_dir(self) -> Path:
        """Where the run is saved."""
        return self._checkpoint_dir or self.folder / "checkpoints"

    @property
    def port(self) -> int:
        """The coordinator's port."""
        return int(self._ready["port"])

    # ---- nodes ----

    def start_node(
        self, name: str | None = None, faults: Sequence[Fault] = (), env: Mapping[str, str] | None = None
    ) -> int:
        """Start one more node, with a script of what goes wrong in it; its number, counted from 0."""
        number = len(self._nodes)
        label = name or f"node-{number}"
        node = Process(label, self.folder / f"{number}-node.log")
        order = {
            **self._order,
            "role": "node",
            "target": self._node_target,
            "name": label,
            "device": self._device,
            "faults": to_plain(tuple(faults)),
        }
        self._spawn(node, order, env)
        self._nodes.append(node)
        if self._where is not None:
            node.tell(self._where)
        return number

    def kill(self, node: int) -> None:
        """SIGKILL a node, and wait until the kernel has taken it."""
        self._nodes[node].signal(signal.SIGKILL)
        self._nodes[node].returncode(10.0)

    def stop_signal(self, node: int) -> None:
        """SIGSTOP a node: it holds its connection and does nothing."""
        self._nodes[node].signal(signal.SIGSTOP)

    def cont(self, node: int) -> None:
        """SIGCONT: let a stopped node go on."""
        self._nodes[node].signal(signal.SIGCONT)

    def returncode(self, node: int, timeout_seconds: float = 30.0) -> int:
        """A node's exit code, minus the number of the signal that killed it; waits for its end."""
        return self._nodes[node].returncode(timeout_seconds)

    def is_running(self, node: int) -> bool:
        """Whether a node has not ended; a stopped one has not."""
        return self._nodes[node].is_running

    def pid(self, node: int | None = None) -> int:
        """The process id of a node, or of the coordinator (None)."""
        return (self._coordinator if node is None else self._nodes[node]).pid

    def logs(self, node: int | None = None) -> str:
        """What a node printed so far, or every incarnation of the coordinator (None)."""
        processes = self._coordinators if node is None else [self._nodes[node]]
        return "".join(process.read_log() for process in processes)

    # ---- the coordinator ----

    def kill_coordinator(self) -> None:
        """SIGKILL the coordinator; nodes go on dialling."""
        self._coordinator.signal(signal.SIGKILL)
        self._coordinator.returncode(10.0)

    def restart_coordinator(
        self,
        resume: bool | Literal["auto"] = "auto",
        *,
        until: Literal["loaded", "ready"] = "ready",
    ) -> None:
        """Start it again on the same port and folder; returns when nodes can join.

        With ``until="loaded"`` already when it has its target and is about to read what was saved.
        """
        if self._coordinator.is_running:
            raise UsageError("the coordinator still runs: kill_coordinator() first")
        self._start_coordinator(resume, self.port)
        if until == "loaded":
            self._hear("loaded", _START_SECONDS)
        else:
            self._wait_ready()

    def stop(self) -> None:
        """Ask the run to drain, as its owner."""
        self._ask(m.AskStop())

    def status(self) -> dict[str, Any]:
        """What ``manyhands status --json`` prints."""
        return self._ask(m.AskStatus())

    def wait(self, timeout_seconds: float = 120.0) -> dict[str, Any]:
        """The report of the run when it has ended, as a dict; raises the coordinator's error if it failed.

        TimeoutError, with the ends of all logs, where it goes on for longer.
        """
        try:
            event = self._hear("report", timeout_seconds)
        except TimeoutError as error:
            tails = "\n".join(process.tail() for process in [self._coordinator, *self._nodes])
            raise TimeoutError(f"the run did not end in {timeout_seconds} s\n{tails}") from error
        self._coordinator.returncode(30.0)
        report: dict[str, Any] = event["report"]
        return report

    @property
    def step_seconds(self) -> dict[int, float]:
        """By step (counted from 0), when this incarnation committed it: seconds since nodes could join."""
        ready = [event["at_seconds"] for event in self._coordinator.events("ready")]
        return {e["step"]: e["at_seconds"] - ready[0] for e in self._coordinator.events("step")}

    # ---- waiting for what happens ----

    def wait_ready(self, timeout_seconds: float = _START_SECONDS) -> None:
        """Return when nodes can join this incarnation of the coordinator."""
        self._hear("ready", timeout_seconds)

    def wait_step(self, step: int, timeout_seconds: float = 60.0) -> None:
        """Return when `step` (counted from 0) or a later one is committed by this incarnation."""
        self._coordinator.wait_event("step", timeout_seconds, lambda event: event["step"] >= step)

    def wait_status(
        self, accept: Any, timeout_seconds: float = 30.0, what: str = "the status that was waited for"
    ) -> dict[str, Any]:
        """Ask until ``accept(status)``; that status."""
        last: list[dict[str, Any]] = []

        def ask() -> bool:
            last[:] = [self.status()]
            return bool(accept(last[0]))

        wait_for(ask, timeout_seconds, what)
        return last[0]

    def wait_nodes(self, count: int, timeout_seconds: float = 60.0) -> None:
        """Return when `count` nodes are members of the run."""
        self.wait_status(lambda s: len(s["nodes"]) >= count, timeout_seconds, f"{count} nodes in the run")

    def wait_fired(self, node: int, timeout_seconds: float = 60.0) -> Fired:
        """The first fault that fired in a node; waits for it."""
        return _fired(node, self._nodes[node].wait_event("fired", timeout_seconds))

    @property
    def fired(self) -> list[Fired]:
        """Every fault that fired so far. Insist on it: a test whose fault never fired proves nothing."""
        return [
            _fired(number, event) for number, node in enumerate(self._nodes) for event in node.events("fired")
        ]

    # ---- inside ----

    @property
    def _coordinator(self) -> Process:
        if not self._coordinators:
            raise UsageError("this cluster is not started: use it in a with block")
        return self._coordinators[-1]

    @property
    def _ready(self) -> dict[str, Any]:
        if self._where is None:
            raise UsageError("this cluster is not started: use it in a with block")
        return self._where

    def _start_coordinator(self, resume: bool | str, port: int) -> None:
        number = len(self._coordinators)
        process = Process("coordinator", self.folder / f"{number}-coordinator.log")
        order = {
            **self._order,
            "role": "coordinator",
            "port": port,
            "folder": str(self.checkpoint_dir.resolve()),
            "resume": resume,
            "options": self._options,
            "quiet": self._quiet,
            "hold_for_nodes": self._hold_for_nodes,
        }
        self._spawn(process, order, None)
        self._coordinators.append(process)

    def _wait_ready(self) -> None:
        event = self._hear("ready", _START_SECONDS)
        first, self._where = self._where is None, {"port": event["port"], "secure": event["secure"]}
        for node in self._nodes if first else ():
            node.wait_event("loaded", _START_SECONDS)
        for node in self._nodes if first else ():
            node.tell(self._where)

    def _hear(self, name: str, timeout_seconds: float) -> dict[str, Any]:
        """The coordinator's event, or its error."""
        try:
            return self._coordinator.wait_event(name, timeout_seconds)
        except RunFailed as error:
            for failed in self._coordinator.events("failed"):
                raise _error(failed, self._coordinator.tail()) from error
            raise

    def _spawn(self, process: Process, order: dict[str, Any], env: Mapping[str, str] | None) -> None:
        own = {"MANYHANDS_STATE_DIR": str(self.state_dir), **self._env, **(env or {})}
        path = [str(Path(folder or ".").resolve()) for folder in sys.path]
        start = self._starter.submit(process.start, {**order, "path": path}, child_environment(own))
        start.result()

    def _ask(self, question: m.Question) -> dict[str, Any]:
        port = self.port
        known = known_invite(self.state_dir, port, Role.OWNER) if self._ready["secure"] else None
        if self._ready["secure"] and known is None:
            raise Unreachable("the coordinator has ended: it left no invite")
        target = known if known is not None else ("127.0.0.1", port)
        with dial(target, secure=known is not None, role=Role.OWNER, timeout_seconds=5.0) as connection:
            answer: dict[str, Any] = msgspec.json.decode(connection.ask(m.encode_question(question)))
        return answer


def _absolute(target: str) -> str:
    """The target with a file's path made whole."""
    place, colon, name = target.rpartition(":")
    file = place if colon else target
    return f"{Path(file).resolve()}:{name or 'server'}" if file.endswith(".py") else target


def _fired(node: int, event: dict[str, Any]) -> Fired:
    return Fired(node, msgspec.convert(event["fault"], Fault), event["step"])


def _error(failed: dict[str, Any], tail: str) -> ManyhandsError:
    """The coordinator's error: as its own class where it is one of ours, else with the end of its log."""
    kind = getattr(errors, failed["kind"], None)
    if not (isinstance(kind, type) and issubclass(kind, ManyhandsError)):
        return RunFailed(f"the coordinator failed: {failed['kind']}: {failed['text']}\n{tail}")
    if kind is errors.BadSample:
        return errors.BadSample(failed["text"], failed["index"])
    if kind is errors.StorageError:
        return errors.StorageError(failed["text"], failed["path"])
    return kind(failed["text"])
