"""Who holds a port: a look into /proc, for the message of a listener that cannot have its own.

It reads and never connects; where /proc does not exist or does not tell, the answer is None.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_LISTEN = "0A"


def port_holder(port: int) -> str | None:
    """`"process 123 (python server.py)"` for what listens on `port`, if it can be seen."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not sockets:
        return None
    for folder in _PROC.iterdir():
        if folder.name.isdigit() and _holds(folder, sockets):
            return f"process {folder.name} ({_command(folder)})"
    return None


def _listening_inodes(port: int) -> Iterator[str]:
    """Inodes of sockets in the state LISTEN: `sl local_address rem_address st ... uid timeout inode`."""
    for table in ("net/tcp", "net/tcp6"):
        with contextlib.suppress(OSError):
            for line in (_PROC / table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == _LISTEN and int(words[1].rpartition(":")[2], 16) == port:
                    yield words[9]


def _holds(folder: Path, sockets: set[str]) -> bool:
    # A process of another user, or one that ends meanwhile: neither can be looked into.
    with contextlib.suppress(OSError):
        for descriptor in (folder / "fd").iterdir():
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()) in sockets:
                    return True
    return False


def _command(folder: Path) -> str:
    """The first words of a command line; not all of it, since a stranger may keep a secret there."""
    try:
        words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "?"
    return " ".join(Path(word).name for word in words[:2] if not word.startswith("mh:")) or "?"
