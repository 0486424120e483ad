"""Memory that was freed is used again, without new pages from the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

ROUNDS = 5
BLOCK_BYTES = 8 << 20
BLOCK_PAGES = BLOCK_BYTES >> 12
SCRIPT = f"""
import resource, torch
from manyhands.tensors.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({ROUNDS}):
        blocks = [torch.ones({BLOCK_BYTES}, dtype=torch.uint8) for _ in range(5)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_freed_blocks_come_again_without_page_faults() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True
    )
    given_back, kept = map(int, run.stdout.split())
    assert given_back > BLOCK_PAGES, "else the system takes nothing back here, and nothing is shown"
    assert kept < BLOCK_PAGES
