"""A script that launches itself: ``python train.py`` does what ``manyhands launch train.py`` would do.

::

    python train.py --nnodes 2 --node_rank 1 --master_addr A --epochs 3
      1 this process is no rank:  the launcher's options are taken out, the script is launched with the rest
      2 each rank runs the script again:  ensure_launched() returns
"""

from __future__ import annotations

import argparse
import copy
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from manyhands.errors import ManyhandsError, UsageError
from manyhands.launch.plan import INTERRUPTED

_INTERRUPTED_EARLY = "manyhands: interrupted before the ranks were started\n"


def ensure_launched(arguments: Sequence[str] | None = None) -> None:
    """Return in a rank; elsewhere launch this script, wait for it, and exit with its code.

    `arguments` (default: this process's) may hold the launcher's long options, with `-` or `_`; all others are
    the script's. To be called before anything that should not happen twice.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is None:
        raise UsageError(
            "this is no script that could be launched: in a notebook use manyhands.launch.notebook"
        )
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(start(launch_line(str(Path(script).resolve()), words)))


def start(arguments: Sequence[str], run: Callable[[Sequence[str]], int] | None = None) -> int:
    """Run a command line of `manyhands launch`, errors included; its exit code. SystemExit (of --help) passes.

    `run` takes the place of `launch`. Loads nothing but what a launch needs: users time its start.
    """
    try:
        return (run or launch)(arguments)
    except ManyhandsError as error:
        sys.stderr.write(f"manyhands: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write(_INTERRUPTED_EARLY)
        return INTERRUPTED


def launch(arguments: Sequence[str]) -> int:
    """`launcher.launch`, loaded now. Ctrl-C ends this process meanwhile."""
    with _interruptible():
        from manyhands.launch.launcher import launch as launch_now

    return launch_now(arguments)


@contextmanager
def _interruptible() -> Iterator[None]:
    """End this process at once on Ctrl-C while torch is being loaded: nothing has started that must be ended.

    Libraries that are being imported may swallow a KeyboardInterrupt, and the launch would go on.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, _INTERRUPTED_EARLY.encode())
    os._exit(INTERRUPTED)


def launch_line(script: str, words: Sequence[str]) -> list[str]:
    """The command line of `manyhands launch` for a script and what it was started with."""
    from manyhands.launch.options import CLUSTER_OPTIONS, parser

    not_taken = ("--help", *CLUSTER_OPTIONS)
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    taken: list[argparse.Action] = []
    for action in parser()._actions:
        long = [o for o in action.option_strings if o.startswith("--") and o not in not_taken]
        if long:
            alone = copy.copy(action)
            alone.option_strings = long
            taken.append(known._add_action(alone))
    given, rest = known.parse_known_args(list(words))
    return [*_options(given, taken), script, *rest]


def _options(given: argparse.Namespace, actions: Sequence[argparse.Action]) -> list[str]:
    """The options that are not at their defaults, as words."""
    words: dict[str, list[str]] = {}
    for action in actions:
        value = getattr(given, action.dest)
        if value == action.default:
            continue
        option = action.option_strings[0]
        words[action.dest] = [option] if action.nargs == 0 else [option, str(value)]
    return [word for pair in words.values() for word in pair]
