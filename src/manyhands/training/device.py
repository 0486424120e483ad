"""Which device a process computes on: CUDA before MPS before CPU, or the one asked for."""

from __future__ import annotations

import torch

from manyhands.errors import UsageError


def pick_device(asked: str | torch.device | None) -> torch.device:
    """The device for ``None``/``"auto"``, else the one asked for; UsageError where this machine has none."""
    if asked is None or asked == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        present = [kind for kind, here in _present().items() if here]
        raise UsageError(
            f"device={str(asked)!r} does not work here ({str(error).splitlines()[0]}); this machine has "
            f"{', '.join(present)}"
        ) from None
    return device


def _present() -> dict[str, bool]:
    return {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
