"""The version of this release, read from the installed package's own metadata."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("manyhands")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
