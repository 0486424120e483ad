"""``manyhands stop``: let a run save what it has and end."""

from __future__ import annotations

from manyhands.cli import console
from manyhands.cli.owner import Desk, InviteArgument, JsonOption, PortOption


def stop(invite: InviteArgument = None, port: PortOption = None, as_json: JsonOption = False) -> None:
    """Drain a run: it saves what is committed and lets its nodes go."""
    from manyhands.fleet.messages import AskStop

    with Desk(invite, port) as desk:
        answer = desk.ask(AskStop())
    if as_json:
        console.show_json(answer)
    else:
        console.show(
            "stopping: what is committed is saved; `manyhands serve TARGET --resume` goes on with it"
        )
