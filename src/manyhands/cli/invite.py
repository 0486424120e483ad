"""``manyhands invite``: another line to paste, the end of one, or of one node."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from manyhands.cli import console
from manyhands.cli.owner import Desk, PortOption, check_exclusive
from manyhands.errors import UsageError

_ROLES = ("node", "observer", "owner")


def invite(
    using: Annotated[
        str | None, typer.Option("--as", metavar="INVITE", help="An owner's mh:// line or @FILE.")
    ] = None,
    port: PortOption = None,
    uses: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many machines may use it.")] = 64,
    hours: Annotated[float, typer.Option(help="How long it lets in.")] = 24.0,
    role: Annotated[str, typer.Option(help=f"What it allows: {', '.join(_ROLES)}.")] = "node",
    revoke: Annotated[
        str | None, typer.Option(metavar="ID", help="End an invite and the nodes it let in.")
    ] = None,
    ban: Annotated[
        str | None, typer.Option(metavar="NODE_ID", help="Remove one node for good; `status --json` has ids.")
    ] = None,
) -> None:
    """Print a line to paste on another machine; it holds a secret."""
    from manyhands.fleet import messages as m

    check_exclusive(revoke=revoke, ban=ban)
    if role not in _ROLES:
        raise UsageError(f"role: {role[:40]!r} is none of {', '.join(_ROLES)}")
    if not 0.0 < hours <= 24 * 3660:
        raise UsageError(f"hours: an invite lives for more than 0 hours and at most ten years, not {hours}")
    ended = revoke if revoke is not None else ban
    with Desk(using, port) as desk:
        if ended is None:
            _print_line(desk.ask(m.AskInvite(uses, hours, role)), role)  # type: ignore[arg-type]
            return
        desk.ask(m.AskRevoke(_checked_id(ended), ban=ban is not None))
    console.show(f"{'banned' if ban is not None else 'revoked'} {ended}")


def _print_line(answer: dict[str, Any], role: str) -> None:
    from manyhands.wire import Invite
    from manyhands.wire.certificates import invite_id, invite_key

    line = Invite.parse(answer["invite"])
    console.tell(f"end it with: manyhands invite --revoke {invite_id(invite_key(line.secret).public_key())}")
    console.show(f"manyhands {'join' if role == 'node' else 'status'} {line}")


def _checked_id(text: str) -> str:
    if not 1 <= len(text) <= 128 or not text.replace("-", "").isalnum():
        raise UsageError("an id has letters, digits and dashes only: `status --json` and `invite` print them")
    return text
