"""The verbs, put together. Each verb's file loads nothing heavy; its function does, when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from manyhands.cli import (
    config,
    console,
    demo,
    doctor,
    invite,
    join,
    launch,
    serve,
    status,
    stop,
    verify,
    worker,
)

app = typer.Typer(
    name="manyhands",
    help="Many hands make light work: train one PyTorch model on every machine you can reach.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from manyhands.release import __version__

        typer.echo(f"manyhands {__version__}")
        raise typer.Exit


@app.callback()
def _everywhere(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "-v", "--verbose", count=True, show_default=False, help="Say more; -vv shows tracebacks."
        ),
    ] = 0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say only results and errors.")] = False,
) -> None:
    console.set_loudness(verbose, quiet=quiet)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


app.command("demo")(demo.demo)
app.command("serve")(serve.serve)
app.command("join")(join.join)
app.command("launch", **launch.ALL_WORDS)(launch.launch)
app.command("status")(status.status)
app.command("stop")(stop.stop)
app.command("invite")(invite.invite)
app.command("verify")(verify.verify)
app.command("doctor")(doctor.doctor)
app.command("worker")(worker.worker)
app.add_typer(config.app, name="config")
