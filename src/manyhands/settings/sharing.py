"""Memory that a process shares with one that it starts; knows nothing of what lies in it."""

from __future__ import annotations

import os
import tempfile


def shared_descriptor(num_bytes: int) -> int:
    """A descriptor of memory for two processes that has no name anywhere; its pages are taken when first used."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("manyhands", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, num_bytes)
    return descriptor
