"""Which machines compute the same bits: the numeric class of a process.

Gradients repeat to the bit between processes of one class, and differ between 1 and 2 threads, AVX2 and
AVX-512, CPU and GPU. A class is named by what a machine says of itself (the fingerprint) and by what it
computes (the probe): the digest of gradients of real leaves under weights made from a seed, dropout on, plus
a sum of denormals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from manyhands.tensors.memory import bytes_of
from manyhands.training.batch import Batch
from manyhands.training.gradients import GradientLayout, collect
from manyhands.training.objective import Objective
from manyhands.training.state import ModelState
from manyhands.training.step import Leaf, Precision, leaf_gradient

SPREAD = 0.1
"""Probe weights are uniform in [-SPREAD, SPREAD): small enough for any sane model to stay finite."""


def fingerprint(device: torch.device) -> dict[str, str]:
    """What decides the bits, as this process says it."""
    facts = {
        "torch": str(torch.__version__),
        "device": device.type,
        "threads": str(torch.get_num_threads()),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
        "matmul_precision": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        facts["device"] = f"cuda {torch.cuda.get_device_name(device)}"
        facts["cudnn"] = f"{torch.backends.cudnn.version()} benchmark={torch.backends.cudnn.benchmark}"  # type: ignore[no-untyped-call]
    return facts


def class_name(facts: dict[str, str], digest: str) -> str:
    """A short name: the readable part, then a hash of everything."""
    text = "\n".join(f"{name}={facts[name]}" for name in sorted(facts)) + "\n" + digest
    short = hashlib.sha256(text.encode()).hexdigest()[:8]
    device = facts.get("device", "unknown").split()[0]
    return f"{device}-{facts.get('cpu', '').lower()}-t{facts.get('threads', '?')}-{short}"


def probe(
    state: ModelState,
    objective: Objective,
    layout: GradientLayout,
    batches: Sequence[tuple[Batch, float]],
    *,
    seed: int,
    precision: Precision,
) -> str:
    """SHA-256 (hex) of what this process computes for `batches` (each with its weight).

    Overwrites trainable parameters and mutated buffers: the caller puts its weights in afterwards.
    """
    _probe_weights(state, layout, seed)
    digest = hashlib.sha256()
    buffer = layout.allocate()
    for number, (batch, weight) in enumerate(batches):
        result = leaf_gradient(
            state, objective, batch, Leaf(0, number, weight), run_seed=seed, precision=precision
        )
        by_name = dict(zip(state.trainable, result.gradients, strict=True))
        collect(layout, [by_name[name] for name in layout.parameters], weight, state.buffers, buffer)
        digest.update(buffer.bytes)
    denormals = torch.full((64,), 1e-40) * torch.linspace(0.5, 1.0, 64)
    digest.update(bytes_of(denormals))
    return digest.hexdigest()


def _probe_weights(state: ModelState, layout: GradientLayout, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in state.trainable.values():
            drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.copy_(((drawn - 0.5) * (2 * SPREAD)).to(parameter.dtype))
        for name in layout.folds:
            buffer = state.buffers[name]
            buffer.fill_(0.5 if buffer.is_floating_point() else 0)
