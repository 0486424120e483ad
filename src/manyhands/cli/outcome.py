"""How a command ends: the one place where errors become a sentence and an exit code.

0 done, 2 usage, 3 unreachable, 4 refused, 5 the run failed, 130 and 143 interrupted. Errors of ours show no
traceback unless asked for (-vv); anything else is a bug, and shows one.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from typer.exceptions import Abort, Exit, TyperException

from manyhands.cli import console
from manyhands.cli.app import app
from manyhands.cli.arguments import hide_invites
from manyhands.errors import ManyhandsError
from manyhands.wire.invite import mask

INTERRUPTED = 130
_BARE_RESUME = "--resume=yes"


def run(arguments: Sequence[str] | None) -> int:
    """Run the command line; SystemExit (a signal's, a script's own) passes."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    hide_invites()
    try:
        code = app(args=_with_values(given), prog_name="manyhands", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except Exit as error:
        return int(error.exit_code)
    except (Abort, KeyboardInterrupt):
        console.complain("interrupted")
        return INTERRUPTED
    except TyperException as error:
        return _usage(error)
    except ManyhandsError as error:
        if console.wants_tracebacks():
            traceback.print_exc()
        console.complain(mask(str(error)))
        return error.exit_code


def _usage(error: TyperException) -> int:
    """A command line that does not parse: its sentence names the option."""
    sentence = getattr(error, "format_message", lambda: str(error))()
    if sentence:
        console.complain(mask(f"{sentence.rstrip('.')}; `manyhands --help` lists what there is"))
    return int(getattr(error, "exit_code", 2))


def _with_values(arguments: list[str]) -> list[str]:
    """`--resume` may stand alone or before `auto`; the parser wants a value with it."""
    taken: list[str] = []
    rest = iter(range(len(arguments)))
    for place in rest:
        if arguments[place] != "--resume":
            taken.append(arguments[place])
        elif arguments[place + 1 : place + 2] == ["auto"]:
            taken.append("--resume=auto")
            next(rest)
        else:
            taken.append(_BARE_RESUME)
    return taken
