"""What torch says about itself, asked in a process of its own.

So a torch that is broken, or takes its process with it, is a finding; and who asks stays light. Run as
``python -m manyhands.diagnosis.torchfacts`` it prints one JSON object as its last line.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import msgspec

from manyhands.observe.text import clean_line
from manyhands.settings.children import child_environment

LOAD_SECONDS = 180.0


class Gpu(msgspec.Struct, frozen=True):
    """One CUDA device."""

    name: str
    memory_bytes: int


class TorchFacts(msgspec.Struct, frozen=True):
    """``capability`` is the widest instruction set that torch uses here; ``cuda`` the version it was built with."""

    version: str
    cuda: str | None
    gpus: list[Gpu]
    mps: bool
    threads: int
    capability: str


def read_torch() -> TorchFacts | str:
    """The facts; a sentence where torch is not installed or does not load."""
    if find_spec("torch") is None:
        return "torch is not installed"
    command = [sys.executable, "-P", "-m", __spec__.name]
    try:
        done = subprocess.run(
            command,
            env=child_environment({}),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LOAD_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"torch did not load within {LOAD_SECONDS:.0f} s"
    if done.returncode < 0:
        return f"torch does not load: signal {-done.returncode} ended the process that tried"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return f"torch does not load: {clean_line(lines[-1])}"
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=TorchFacts)


def main() -> int:
    """Load torch and print what it says."""
    import torch

    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    facts = {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
        "mps": torch.backends.mps.is_available(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
