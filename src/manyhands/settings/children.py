"""The environment for processes that we start ourselves: this one's without our own variables, or next to nothing.

An invite or a state folder meant for this process must not send a child elsewhere, so each child is told
what it needs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from manyhands.settings.sources import PREFIX

NUMERIC = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "CUDA_VISIBLE_DEVICES",
)
"""What decides how torch computes, and is read when it is loaded."""
_BARE = ("LANG", "LD_LIBRARY_PATH", "PYTHONPATH", *NUMERIC)
"""The language of messages, where libraries lie, and how to compute: no secret has a place here."""


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """A copy of the environment without ``MANYHANDS_*``, then with `changes`."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    return {**inherited, **changes}


def bare_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Almost nothing, for a process that runs what others sent: a few names of this environment, then `changes`."""
    return {**{name: os.environ[name] for name in _BARE if name in os.environ}, **changes}
