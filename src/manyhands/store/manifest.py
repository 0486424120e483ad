"""The manifest of a checkpoint: what it belongs to, and how to tell that each of its files is whole.

Plain JSON that people read too: the caller's entries beside `format`, `run`, `step`, `saved_at`, `tied`,
`files` (size and SHA-256 each) and a `checksum` over all the rest. Knows no tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manyhands.errors import StorageError, UsageError
from manyhands.store.files import sha256, storage, write_text

FORMAT = 1
MANIFEST = "manifest.json"


def write_manifest(
    path: Path, own: Mapping[str, Any], caller: Mapping[str, Any], files: Sequence[Path]
) -> None:
    """Write and flush a manifest that vouches for `files`, which are on the disk already.

    Raises `UsageError` where the caller's entries are not plain JSON data or take a name of ours.
    """
    ours = {"format": FORMAT, **own, "files": {file.name: _describe(file) for file in files}}
    _check_plain(caller, {*ours, "checksum"})
    manifest = {**ours, **caller}
    manifest["checksum"] = _checksum(manifest)
    write_text(path, json.dumps(manifest, indent=1, allow_nan=False) + "\n")


def read_manifest(path: Path) -> dict[str, Any]:
    """A whole manifest; raises `StorageError` for one that is torn, damaged or of a later format."""
    with storage(path, "read"):
        data = path.read_bytes()
    try:
        manifest: dict[str, Any] = json.loads(data)
        whole = manifest["checksum"] == _checksum(manifest)
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise StorageError(f"{path.name} is torn or damaged", str(path))
    if manifest["format"] > FORMAT:
        raise StorageError(
            f"its format is {manifest['format']}, this version reads up to {FORMAT}; update manyhands",
            str(path),
        )
    return manifest


def plain(value: Any) -> Any:
    """JSON's own types: tuples as lists, keys as text, anything odd as its repr."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def _describe(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def _check_plain(entries: Mapping[str, Any], taken: set[str]) -> None:
    for key, value in entries.items():
        if key in taken:
            raise UsageError(f"the manifest entry {key!r} is the checkpoint's own; use another name")
        try:
            same = json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError):
            same = False
        if not same:
            raise UsageError(
                f"the manifest entry {key!r} is not plain JSON data: finite numbers, text, lists, "
                "dicts with text keys"
            )


def _checksum(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
