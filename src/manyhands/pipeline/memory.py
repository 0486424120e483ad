"""How much memory a device has left, for the boss's plan."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def free_memory_bytes(device: torch.device) -> int:
    """What may still be allocated on `device`; on a CPU what the system calls available."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _available() or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _available() -> int | None:
    """Linux: proc_meminfo(5), in kB; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
