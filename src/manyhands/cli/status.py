"""``manyhands status``: run, step, loss, nodes and ledger of a coordinator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from manyhands.cli import console
from manyhands.cli.owner import Desk, InviteArgument, JsonOption, PortOption
from manyhands.errors import Refused, Unreachable
from manyhands.observe.rates import format_bytes, format_count
from manyhands.observe.text import clean_line, clean_name

if TYPE_CHECKING:
    from rich.console import RenderableType

_WATCH_SECONDS = 1.0


def status(
    invite: InviteArgument = None,
    port: PortOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until the run ends.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a run: step, loss, nodes, ledger."""
    from manyhands.fleet.messages import AskStatus

    with Desk(invite, port) as desk:
        if watch:
            _watch(desk, as_json=as_json)
            return
        answer = desk.ask(AskStatus())
    if as_json:
        console.show_json(answer)
    else:
        console.show(table(answer))


def _watch(desk: Desk, *, as_json: bool) -> None:
    """Ask each second; the run's end ends this too, unless there was none to begin with."""
    from rich.live import Live

    from manyhands.clock import SystemClock
    from manyhands.fleet.messages import AskStatus

    clock, answer = SystemClock(), desk.ask(AskStatus())
    with Live(auto_refresh=False, transient=False) as live:
        while True:
            if as_json:
                console.show_json(answer)
            else:
                live.update(table(answer), refresh=True)
            clock.sleep(_WATCH_SECONDS)
            try:
                answer = desk.ask(AskStatus())
            except (Unreachable, Refused):
                break
    console.tell("the coordinator has ended")


def table(answer: dict[str, Any]) -> RenderableType:
    """A status for a person's eyes; every name of a peer's is cleaned here once more."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    loss, ledger = answer["loss"], answer["ledger"]
    head = Text(
        f"run {clean_line(str(answer['run']))} · {answer['state']} · epoch {answer['epoch']} · "
        f"step {answer['step']} · loss {'-' if loss is None else f'{loss:.4g}'}"
    )
    foot = Text(
        f"ledger: {ledger['applied']} samples applied · {ledger['leased']} micro-batches leased · "
        f"{ledger['reissued']} re-issued · {ledger['refused']} refused"
    )
    nodes = Table(box=None, pad_edge=False)
    for name in ("node", "id", "state", "device", "numeric class"):
        nodes.add_column(name)
    for name in ("samples", "samples/s", "sent", "received"):
        nodes.add_column(name, justify="right")
    for node in answer["nodes"]:
        nodes.add_row(*_row(node))
    return Group(head, nodes if answer["nodes"] else Text("no nodes yet: `manyhands invite`"), foot)


def _row(node: dict[str, Any]) -> list[Any]:
    from rich.text import Text

    cells = [
        clean_name(str(node["name"])),
        str(node["id"])[:12],
        str(node["state"]),
        clean_name(str(node["device"])),
        clean_name(str(node["numeric_class"])),
        str(node["samples"]),
        format_count(node["samples_per_s"]),
        format_bytes(node["sent_bytes"]),
        format_bytes(node["received_bytes"]),
    ]
    return [Text(cell) for cell in cells]
