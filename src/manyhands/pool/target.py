"""From ``server.py:server`` or ``module:name`` to a ``CentralServer`` that is not started yet.

What ``serve``, ``verify`` and the test cluster are given. The name may be a server, a dict of its arguments,
or a function that returns either. The user's own code runs here, on the user's own machine; nothing that
came over a network does.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from manyhands.errors import UsageError
from manyhands.pool.options import PoolOptions
from manyhands.pool.server import CentralServer
from manyhands.training.reference import ReferenceReport, reference

DEFAULT_NAME = "server"


@dataclass(frozen=True)
class Parts:
    """What a server was made of."""

    model: nn.Module
    dataset: Any
    criterion: Any
    optimizer: Any
    scheduler: Any
    options: PoolOptions


def find_object(target: str) -> Any:
    """The object that `target` names, as it stands there.

    `module:name` or `path.py:name`; without a name, ``server``. Raises UsageError where there is no such file,
    module or name; an exception of the user's own code passes as it is.
    """
    place, _, name = target.rpartition(":") if ":" in target else (target, "", DEFAULT_NAME)
    module = _from_file(Path(place)) if place.endswith(".py") else _from_name(place, target)
    found: Any = module
    for part in (name or DEFAULT_NAME).split("."):
        if not hasattr(found, part):
            raise UsageError(f"target {target!r}: {place} has no {part!r}{_choices(module)}")
        found = getattr(found, part)
    return found


def load_object(target: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """The object that `target` names; a function is called with `arguments`, and its result returned."""
    found = find_object(target)
    is_factory = callable(found) and not isinstance(found, CentralServer | nn.Module | Mapping)
    return found(**(arguments or {})) if is_factory else found


def load_server(target: str, arguments: Mapping[str, Any] | None = None) -> CentralServer:
    """The server that `target` names, not started. UsageError where it is something else."""
    return as_server(load_object(target, arguments), target)


def as_server(found: Any, target: str) -> CentralServer:
    """A loaded object as a server; a mapping holds a server's arguments."""
    if isinstance(found, Mapping):
        return CentralServer(**found)
    if not isinstance(found, CentralServer):
        raise UsageError(
            f"target {target!r} is {type(found).__name__}: it must be a CentralServer, or a function that "
            "returns one"
        )
    return found


def parts_of(server: CentralServer) -> Parts:
    """What `server` was made of, for a reference or a node that trains the same."""
    return Parts(
        server.model,
        server._dataset,
        server._criterion,
        server._optimizer,
        server._scheduler,
        server._options,
    )


def change_options(server: CentralServer, **changes: Any) -> None:
    """Other options for a server that is not started (names of ``CentralServer``'s arguments)."""
    server._options = replace(server._options, **changes)


def watch_steps(server: CentralServer, on_step: Callable[..., Any]) -> None:
    """Also call `on_step` after each committed step, behind the server's own callback."""
    own, on_epoch = server._callbacks

    def both(**figures: Any) -> None:
        if own is not None:
            own(**figures)
        on_step(**figures)

    server._callbacks = (both, on_epoch)


def make_quiet(server: CentralServer) -> None:
    """Drop what a comparison must not do twice: callbacks, log, validation, early stopping."""
    server._callbacks, server._log, server._val_dataset = (None, None), None, None
    change_options(server, early_stopping=None, val_every=None)


def run_reference(parts: Parts) -> ReferenceReport:
    """Train ``parts.model`` in place, alone, as the server would have it trained."""
    options = parts.options
    return reference(
        parts.model,
        parts.dataset,
        batch_size=options.batch_size,
        micro_batches=options.micro_batches,
        epochs=options.epochs,
        max_steps=options.max_steps,
        criterion=parts.criterion,
        optimizer=parts.optimizer,
        scheduler=parts.scheduler,
        shuffle=options.shuffle,
        drop_last=options.drop_last,
        collate_fn=options.collate_fn,
        seed=options.seed,
        clip_norm=options.clip_norm,
        precision=options.precision,
        weight=options.weight,
        compression=options.compression,
    )


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"target: there is no file {path}")
    path = path.resolve()
    _put_on_path(path.parent)
    name = path.stem if path.stem not in sys.modules else f"target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_name(name: str, target: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"target {target!r} is no module:name or path.py:name")
    _put_on_path(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # the user's module was found, and misses one of its own
        raise UsageError(
            f"target {target!r}: there is no module {error.name!r} here or among what is installed; "
            "give module:name or path.py:name"
        ) from None


def _put_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _choices(module: ModuleType) -> str:
    servers = [name for name, value in vars(module).items() if isinstance(value, CentralServer)]
    if servers:
        return f"; its servers are {', '.join(servers)}"
    return "; name a CentralServer of it, or a function that returns one"
