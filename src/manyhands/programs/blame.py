"""Which line of the model is at fault: the innermost one that is neither torch's, Python's nor ours.

Libraries of models (transformers) count as the model's own code. Knows stacks, and nothing of programs.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path
from typing import Final

import torch
from torch import fx

_TORCH: Final = str(Path(torch.__file__).parent) + os.sep
_OURS: Final = str(Path(__file__).parents[1]) + os.sep
_PYTHON: Final = sysconfig.get_path("stdlib") + os.sep
_INSTALLED: Final = tuple(_PYTHON + name + os.sep for name in ("site-packages", "dist-packages"))


def line_of_error(error: BaseException) -> str:
    """`` at model.py:12 (`code`)``, from a traceback; empty where no line is the model's."""
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if _is_models(frame.filename):
            found = _place(frame.filename, str(frame.lineno), frame.line or "")
    return found


def line_of_node(node: fx.Node) -> str:
    """The same from a graph node's stack; where torch's modules alone are on it, `` in 0.1 (ReLU)``."""
    lines, found = (node.stack_trace or "").splitlines(), ""
    for line, code in zip(lines, [*lines[1:], ""], strict=True):
        head, _, rest = line.strip().partition('", line ')
        path = head.removeprefix('File "')
        if rest and _is_models(path):
            found = _place(path, rest.split(",")[0], code.strip())
    return found or _module_of(node)


def _is_models(path: str) -> bool:
    if path.startswith(("<frozen", _TORCH, _OURS)):
        return False
    return not path.startswith(_PYTHON) or path.startswith(_INSTALLED)


def _module_of(node: fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack:
        return ""
    name, kind = stack[-1]
    return f" in {name} ({str(kind).rpartition('.')[-1]})"


def _place(path: str, line: str, code: str) -> str:
    return f" at {path}:{line}" + (f" (`{code}`)" if code else "")
