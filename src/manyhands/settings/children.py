"""The environment for processes that we start ourselves: this one's, without our own variables.

An invite or a state folder meant for this process must not send a child elsewhere, so each child is told
what it needs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from manyhands.settings.sources import PREFIX


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """A copy of the environment without ``MANYHANDS_*``, then with `changes`."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    return {**inherited, **changes}
