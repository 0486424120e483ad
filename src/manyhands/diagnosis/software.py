"""Python, this release, and torch with what it computes on."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, requires

from manyhands.diagnosis.finding import Figures, Finding, bad, ok, warn
from manyhands.diagnosis.torchfacts import TorchFacts
from manyhands.observe.rates import format_bytes
from manyhands.observe.text import clean_name
from manyhands.release import __version__
from manyhands.wire.limits import PROTOCOL

_INSTALL = "install a torch that suits this machine, then look again"


def look_at_python() -> Finding:
    """The interpreter and this release."""
    found = (
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, "
        f"manyhands {__version__} (protocol {PROTOCOL})"
    )
    figures: Figures = {"python": platform.python_version(), "release": __version__, "protocol": PROTOCOL}
    return ok("python", found, **figures)


def judge_torch(facts: TorchFacts | str, least: tuple[int, ...] | None) -> Finding:
    """The version of torch, against the oldest that our tests pass on (None: not known)."""
    if isinstance(facts, str):
        return bad("torch", facts, _INSTALL)
    build = f"CUDA {facts.cuda}" if facts.cuda else "no CUDA in this build"
    found = f"torch {facts.version} ({build}), {facts.threads} threads, {facts.capability}"
    figures: Figures = {"version": facts.version, "threads": facts.threads, "capability": facts.capability}
    version = release_of(facts.version)
    if least is not None and version < least:
        wanted = ".".join(map(str, least))
        return warn(
            "torch",
            found,
            f"the tests pass on torch {wanted} and newer: an older one may work or not",
            **figures,
        )
    return ok("torch", found, **figures)


def judge_device(facts: TorchFacts) -> Finding:
    """What a node computes on where no device is given: CUDA before MPS before the CPU."""
    if facts.gpus:
        named = ", ".join(
            f"cuda:{number} {clean_name(gpu.name)} ({format_bytes(gpu.memory_bytes)})"
            for number, gpu in enumerate(facts.gpus)
        )
        more = "`--device all` lends each of them" if len(facts.gpus) > 1 else ""
        return ok("device", named, more, device="cuda", num_devices=len(facts.gpus))
    if facts.mps:
        return ok("device", "mps", device="mps", num_devices=1)
    if facts.cuda:
        return warn(
            "device",
            f"the CPU: torch is built for CUDA {facts.cuda} and finds no GPU",
            "where there is one: is its driver installed, and new enough for this CUDA?",
            device="cpu",
            num_devices=0,
        )
    return ok("device", f"the CPU ({facts.capability})", device="cpu", num_devices=0)


def release_of(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: `(2, 13, 0)` of `2.13.0+cpu`."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def least_torch() -> tuple[int, ...] | None:
    """The oldest torch that this release asks for; None in a source tree that was never installed."""
    try:
        wanted = requires("manyhands") or []
    except PackageNotFoundError:
        return None
    found = next((m for text in wanted if (m := re.match(r"torch\s*>=\s*([\d.]+)", text))), None)
    return release_of(found[1]) if found else None
