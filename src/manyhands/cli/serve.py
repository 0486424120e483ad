"""``manyhands serve``: run the ``CentralServer`` of a file or module, as ``python server.py`` would."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from manyhands.cli import console
from manyhands.cli.owner import JsonOption
from manyhands.errors import ManyhandsError, RunFailed, UsageError

if TYPE_CHECKING:
    from manyhands.pool.server import CentralServer
    from manyhands.pool.tally import Report

TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET", help="server.py:server or module:name, a CentralServer or a function returning one."
    ),
]


def serve(
    target: TargetArgument,
    resume: Annotated[
        str | None, typer.Option(metavar="[auto]", help="Go on with the saved run; auto: if there is one.")
    ] = None,
    ip: Annotated[str | None, typer.Option(help="Address to listen on, instead of the server's own.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = None,
    advertise: Annotated[str | None, typer.Option(metavar="A", help="Address put into invites.")] = None,
    invite_file: Annotated[
        Path | None, typer.Option(metavar="F", help="Also write the invite to this file (mode 0600).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train what TARGET names, with every machine that joins."""
    from dataclasses import asdict

    from manyhands.pool.target import load_server

    server = load_server(target)
    server.ip = server.ip if ip is None else ip
    server.port = server.port if port is None else port
    server.advertise = server.advertise if advertise is None else advertise
    server.resume = server.resume if resume is None else _resume(resume)
    report = _run(server, invite_file)
    if as_json:
        console.show_json(asdict(report))
        return
    loss = "-" if report.final_loss is None else f"{report.final_loss:.4g}"
    console.show(
        f"done: {report.steps} steps, {report.samples_applied} samples applied, loss {loss}, "
        f"{report.seconds:.1f} s; the model is {_model_path(server, report)}"
    )


def _run(server: CentralServer, invite_file: Path | None) -> Report:
    """From start to report. An exception of the user's own code is shown whole; the run failed by it."""
    try:
        server.start(block=False)
        if invite_file is not None:
            _write(server, invite_file)
        return server.wait()
    except ManyhandsError:
        raise
    except Exception as error:
        traceback.print_exception(error)
        raise RunFailed(f"the run ended by an exception: {type(error).__name__}: {error}") from error


def _model_path(server: CentralServer, report: Report) -> Path:
    return server.checkpoint_dir / str(server.status()["run"]) / f"step-{report.steps}" / "model.safetensors"


def _resume(text: str) -> bool | Literal["auto"]:
    if text == "auto":
        return "auto"
    if text != "yes":
        raise UsageError(f"--resume stands alone, or before the word auto; {text!r} is neither")
    return True


def _write(server: CentralServer, path: Path) -> None:
    """Put the invite where a script finds it; gone or kept, it is the file's owner who decides."""
    from manyhands.wire.private import write_private

    if not server.secure:
        raise UsageError("--invite-file: a server with secure=False needs no invite, and has none")
    write_private(path, f"{server.invite}\n".encode())
