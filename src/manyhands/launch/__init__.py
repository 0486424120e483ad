"""Launch mode: the same script on every core and every machine, on torch.distributed.

Read `plan`, `blame` and `fold` for the decisions, `launcher` for a launch from its words to its exit code, and
`sessions` for what a script asks for its rank, device and wrapped model. Names load when they are first used: the
launcher itself needs no session, and a session no launcher.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manyhands.launch.notebooks import notebook
    from manyhands.launch.opening import session
    from manyhands.launch.sessions import Session
    from manyhands.launch.starting import ensure_launched

__all__ = ["Session", "ensure_launched", "notebook", "session"]

_HOMES = {
    "Session": "sessions",
    "ensure_launched": "starting",
    "notebook": "notebooks",
    "session": "opening",
}


def __getattr__(name: str) -> Any:
    """A public name, loaded now."""
    if name not in _HOMES:
        raise AttributeError(f"module 'manyhands.launch' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"manyhands.launch.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
