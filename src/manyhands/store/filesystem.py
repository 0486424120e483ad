"""Which kind of file system a path lies on: SQLite's write-ahead log needs shared memory, and no network.

See https://sqlite.org/wal.html, "All processes using a database must be on the same host computer".
The decision is pure (a path and the text of `/proc/self/mountinfo`); one function reads the real table.
"""

from __future__ import annotations

import re
from pathlib import Path

_NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "davfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"}
    | {"orangefs", "panfs", "prl_fs", "pvfs2", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs"}
)
_OCTAL = re.compile(r"\\([0-7]{3})")


def is_network(kind: str) -> bool:
    """Whether a file system of this type is, or may be, shared with another machine.

    A user-space file system (`fuse.sshfs`, Colab's `fuse.drive`) counts as one; `fuseblk` is a local disk.
    """
    return kind in _NETWORK or kind == "fuse" or kind.startswith("fuse.")


def kind_of(path: Path, mountinfo: str) -> str:
    """The type of the file system that holds the absolute `path`, `"unknown"` if the table has no answer.

    The longest mount point that is a parent wins, among equals the last, which hides the ones below it.
    """
    best, kind = -1, "unknown"
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = Path(_OCTAL.sub(lambda code: chr(int(code.group(1), 8)), fields[4]))
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), right.split(" ")[0]
    return kind


def filesystem(path: Path) -> str:
    """The type of the file system under `path` on this machine, `"unknown"` where there is no mount table."""
    try:
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    return kind_of(path.resolve(), table)
