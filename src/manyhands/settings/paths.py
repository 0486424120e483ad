"""Where this user's own files live: keys, invites written by local listeners, the coordinator's certificate.

Follows the XDG Base Directory specification for state. Only names and makes the folder; knows no contents.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from manyhands.errors import StorageError, UsageError


def state_dir() -> Path:
    """`$MANYHANDS_STATE_DIR`, else `$XDG_STATE_HOME/manyhands`, else `~/.local/state/manyhands`.

    Relative values of `XDG_STATE_HOME` are ignored, as its specification says; one of ours is refused.
    """
    own = os.environ.get("MANYHANDS_STATE_DIR", "")
    if own:
        path = Path(own).expanduser()
        if not path.is_absolute():
            raise UsageError(f"MANYHANDS_STATE_DIR={own}: give an absolute path")
        return path
    xdg = Path(os.environ.get("XDG_STATE_HOME", ""))
    base = xdg if xdg.is_absolute() else _home() / ".local" / "state"
    return base / "manyhands"


def ensure_state_dir() -> Path:
    """The state folder, made with mode 0700.

    Raises `StorageError` where it cannot be made, or is another user's.
    """
    path = state_dir()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
        if status.st_uid != os.geteuid():
            raise StorageError(
                f"{path} belongs to user {status.st_uid}, not to you; set MANYHANDS_STATE_DIR to another one",
                str(path),
            )
        if stat.S_IMODE(status.st_mode) & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise StorageError(
            f"could not make the state folder {path}: {error.strerror}; set MANYHANDS_STATE_DIR to another",
            str(path),
        ) from error
    return path


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise UsageError("this user has no home folder; set MANYHANDS_STATE_DIR") from error
