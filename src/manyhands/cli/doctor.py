"""``manyhands doctor``: looks at this machine, and with an invite at the way to its coordinator. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manyhands.cli import console
from manyhands.cli.owner import DEFAULT_PORT, JsonOption, PortOption, usual_port
from manyhands.errors import ManyhandsError

if TYPE_CHECKING:
    from manyhands.diagnosis.coordinator import Here
    from manyhands.diagnosis.finding import Finding
    from manyhands.wire import Invite

_TOPIC_WIDTH = 12


def doctor(
    invite: Annotated[
        str | None,
        typer.Argument(
            metavar="[INVITE]",
            help="An mh:// line or @FILE: also look at its coordinator, and the way there; takes one of its uses. "
            "Without one: MANYHANDS_INVITE, or your coordinator here.",
        ),
    ] = None,
    port: PortOption = None,
    checkpoints: Annotated[
        Path, typer.Option(metavar="DIR", help="Where a coordinator here would save.")
    ] = Path("checkpoints"),
    as_json: JsonOption = False,
) -> int:
    """Look for what is in the way: each line says what was found, and what to do."""
    from manyhands.diagnosis.finding import exit_code

    line = _line(invite)  # a damaged one ends it here
    findings = []
    for finding in _findings(line, port, checkpoints):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        console.show_json(_plain(findings))
    elif line is None and not any(finding.topic == "run" for finding in findings):
        console.tell(
            "no invite: only this machine was looked at; `manyhands doctor mh://...` looks at the way too"
        )
    return exit_code(findings)


def _line(given: str | None) -> Invite | None:
    """The invite that was given, here or in the environment. UsageError for a damaged one."""
    from manyhands.settings import load
    from manyhands.wire import read_invite

    secret = load().invite
    text = given or (secret.get_secret_value() if secret else None)
    return read_invite(text) if text else None


def _findings(line: Invite | None, port: int | None, checkpoints: Path) -> Iterator[Finding]:
    from manyhands.diagnosis import machine, network, software
    from manyhands.diagnosis.coordinator import Here
    from manyhands.diagnosis.torchfacts import read_torch
    from manyhands.settings import state_dir
    from manyhands.wire import known_ports

    with ThreadPoolExecutor(1, thread_name_prefix="manyhands-torch") as pool:
        torch = pool.submit(read_torch)  # loads while the rest is looked at
        memory, state = machine.read_memory(), state_dir()
        own_ports = known_ports(state)
        here = port if port is not None else DEFAULT_PORT
        yield software.look_at_python()
        yield machine.judge_memory(memory, machine.cores())
        yield machine.judge_state(machine.read_folder(state))
        yield machine.judge_checkpoints(machine.read_folder(checkpoints))
        yield network.judge_addresses(network.read_addresses(), here)
        yield network.judge_port(network.read_port(here), own_ports)
        yield network.judge_proxies(network.read_proxies())
        facts = torch.result()
        yield software.judge_torch(facts, software.least_torch())
        if not isinstance(facts, str):
            yield software.judge_device(facts)
    what = Here(memory.usable, machine.cores())
    if line is not None:
        yield from _visit(line, "keys", what)
    elif own_ports:
        yield from _visit_own(port, what)


def _visit(invite: Invite, folder: str, here: Here) -> Iterator[Finding]:
    """Look at a coordinator as one of this user's keys, the one that a node here would take next."""
    from manyhands.clock import SystemClock
    from manyhands.diagnosis.coordinator import visit
    from manyhands.diagnosis.finding import failed
    from manyhands.settings import ensure_state_dir, load
    from manyhands.wire import NodeKey

    try:
        key = NodeKey.claim(ensure_state_dir() / folder)
    except ManyhandsError as error:
        yield failed("entry", error)
        return
    try:
        yield from visit(invite, key, here, load().network.timeout, SystemClock())
    finally:
        key.release()


def _visit_own(port: int | None, here: Here) -> Iterator[Finding]:
    """Look at this user's own coordinator; a killed one leaves its file behind, which keeps nobody out."""
    from manyhands.diagnosis.finding import Verdict, warn
    from manyhands.errors import Unreachable
    from manyhands.settings import state_dir
    from manyhands.wire import Role, known_invite

    invite = known_invite(state_dir(), port if port is not None else usual_port(), Role.OWNER)
    if invite is None:
        return
    for finding in _visit(invite, "owner-keys", here):
        if finding.verdict is Verdict.BAD and finding.exit_code == Unreachable.exit_code:
            yield warn(
                finding.topic,
                f"a coordinator of yours was on port {invite.port} and does not answer any more",
                "start it again with --resume auto; if it was meant to end, this is nothing to mind",
            )
        else:
            yield finding


def _show(finding: Finding) -> None:
    """A line for a person, and another that says what to do."""
    from manyhands.wire.invite import mask

    console.show(mask(f"{finding.verdict:<5}{finding.topic:<{_TOPIC_WIDTH}} {finding.found}"))
    if finding.do:
        console.show(mask(f"{'':{5 + _TOPIC_WIDTH}} → {finding.do}"))


def _plain(findings: list[Finding]) -> dict[str, Any]:
    from manyhands.wire.invite import mask

    rows = [asdict(finding) for finding in findings]
    for row in rows:
        row["verdict"] = str(row["verdict"])
        row["found"], row["do"] = mask(row["found"]), mask(row["do"])
        del row["exit_code"]
    count = [row["verdict"] for row in rows].count
    return {"ok": count("ok"), "warn": count("warn"), "bad": count("bad"), "findings": rows}
