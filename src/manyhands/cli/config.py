"""``manyhands config show``: each setting, its value, and where it came from."""

from __future__ import annotations

import typer

from manyhands.cli import console
from manyhands.cli.owner import JsonOption

app = typer.Typer(help="Settings: environment > .env > config.yaml > defaults.")


@app.callback()
def _config() -> None:
    """A group of one, so that `config show` stays what it is called."""


@app.command("show")
def show(as_json: JsonOption = False) -> None:
    """Each value and where it came from, secrets masked."""
    from manyhands.settings import explain, state_dir

    rows = explain(split=True)
    if as_json:
        console.show_json({row.key: {"value": row.value, "source": row.source} for row in rows})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("key", "value", "from"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(Text(row.key), Text(row.value), Text(row.source))
    console.show(table)
    console.tell(f"\nkeys and invites of this user: {state_dir()}")
