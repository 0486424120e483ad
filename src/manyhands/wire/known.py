"""Invites that lie on this machine: the files that a local listener leaves for its own user.

Whoever runs `status` or a node beside the coordinator needs no pasting: the listener writes one 0600 file a
port, and takes it away when it closes. The folder and the environment's value come in from outside.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path

import msgspec

from manyhands.errors import Refused, UsageError
from manyhands.wire.admission import Role
from manyhands.wire.invite import Invite
from manyhands.wire.private import private_folder, read_private, write_private

_COMMAND = re.compile(r"^manyhands\s+[a-z]+\s+(?=mh://)")


class _File(msgspec.Struct, frozen=True):
    node: str
    owner: str
    writer: str
    pid: int


class KnownFile:
    """The file of one local listener, from `write` to `remove`."""

    def __init__(self, state_dir: Path, port: int) -> None:
        self.path = _path(state_dir, port)
        self._writer = secrets.token_hex(8)

    def write(self, node: Invite, owner: Invite) -> None:
        """Put both lines where processes of this user find them; an older file of this port is replaced."""
        private_folder(self.path.parent)
        write_private(self.path, msgspec.json.encode(_File(str(node), str(owner), self._writer, os.getpid())))

    def remove(self) -> None:
        """Take the file away, unless another listener has put its own there since."""
        known = _read(self.path)
        if known is not None and known.writer == self._writer:
            self.path.unlink(missing_ok=True)


def known_invite(state_dir: Path, port: int, role: Role = Role.NODE) -> Invite | None:
    """What a local listener on `port` left for this user: its owner's line for `OWNER`, else the node's."""
    known = _read(_path(state_dir, port))
    if known is None:
        return None
    return Invite.parse(known.owner if role is Role.OWNER else known.node)


def known_ports(state_dir: Path) -> list[int]:
    """Ports of the local listeners that left a file, sorted; a killed one leaves its file behind."""
    names = (path.stem.removeprefix("listener-") for path in state_dir.glob("listener-*.json"))
    return sorted(int(name) for name in names if name.isdigit())


def find_invite(
    argument: Invite | str | None,
    env_value: str | None,
    state_dir: Path,
    port: int,
    role: Role = Role.NODE,
) -> Invite:
    """The invite to use: the argument, else the value of MANYHANDS_INVITE, else a local listener's file.

    Argument and environment hold an `mh://` line or `@file`. Raises `UsageError` for a damaged line and
    `Refused` where there is none.
    """
    if isinstance(argument, Invite):
        return argument
    for text in (argument, env_value):
        if text:
            return read_invite(text)
    known = known_invite(state_dir, port, role)
    if known is not None:
        return known
    raise Refused(
        "no invite: none was given, MANYHANDS_INVITE is not set, and no coordinator of yours runs here on "
        f"port {port}; `manyhands invite` on the coordinator's machine prints a line to paste"
    )


def read_invite(text: str) -> Invite:
    """An invite from its line, or from the file that `@file` names. Raises `UsageError`.

    Either may hold the whole command that was printed: ``manyhands join mh://...``.
    """
    text = text.strip()
    if not text.startswith("@"):
        return Invite.parse(_without_command(text))
    path = Path(text[1:]).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"the invite file {path} cannot be read: {reason}") from None
    found = [line for line in map(_without_command, lines) if line.startswith("mh://")]
    if len(found) != 1:
        raise UsageError(
            f"the invite file {path} holds {len(found)} lines with an invite (mh://...), not one"
        )
    return Invite.parse(found[0])


def _without_command(line: str) -> str:
    """What follows ``manyhands join`` (or ``worker``, ``status``) in a line that was copied whole."""
    return _COMMAND.sub("", line.strip())


def _path(state_dir: Path, port: int) -> Path:
    return state_dir / f"listener-{port}.json"


def _read(path: Path) -> _File | None:
    """The file, or None where there is none or it is torn: then nobody of ours wrote it whole."""
    with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
        return msgspec.json.decode(read_private(path), type=_File)
    return None
