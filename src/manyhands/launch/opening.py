"""The session of this process: its rank from the launcher, its device and strategy chosen, its group joined."""

from __future__ import annotations

import atexit
import sys

import torch

from manyhands.clock import SystemClock
from manyhands.errors import UsageError
from manyhands.launch.group import device_of, join_group, rank_from_environment
from manyhands.launch.preparing import Strategy
from manyhands.launch.sessions import Session
from manyhands.observe.metrics import NoLog, open_log
from manyhands.training.seeds import seed_generators


def session(
    *,
    backend: str | None = None,
    device: str | torch.device | None = None,
    strategy: Strategy = "auto",
    seed: int = 0,
    log: str | None = None,
) -> Session:
    """The session of this process, in the group that the launcher prepared; alone where there is none.

    `backend` is ``"nccl"`` or ``"gloo"`` (default: by the device); `strategy` ``"ddp"``, ``"staged"`` (averages
    over the CPU: MPS), ``"fsdp"`` (FSDP2) or ``"auto"``. Seeds all generators, so that a model built next is the
    same on all ranks. `log` is ``"tensorboard:DIR"``, ``"csv:FILE"`` or ``"jsonl:FILE"``. UsageError for what this
    machine does not have.
    """
    if strategy not in ("auto", "ddp", "staged", "fsdp"):
        raise UsageError(f"strategy={strategy!r}: choose auto, ddp, staged or fsdp")
    rank = rank_from_environment()
    place = device_of(rank, device, backend)
    if strategy == "auto" or rank.is_alone:
        strategy = "staged" if place.type == "mps" else "ddp"
    if not rank.is_alone:
        join_group(place, backend)
    seed_generators(seed)
    made = Session(rank, place, strategy, seed, open_log(log) if rank.rank == 0 else NoLog(), SystemClock())
    atexit.register(_close_at_exit, made)
    return made


def _close_at_exit(made: Session) -> None:
    """Not after an error: the peers may be waiting for this rank, and a group that is broken cannot be left."""
    if not hasattr(sys, "last_value"):
        made.close()
