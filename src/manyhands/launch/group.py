"""The process group a rank belongs to, and the few things that ranks say to one another. No pickle.

Numbers and states travel as tensors on the CPU, over Gloo, whatever the gradients travel over.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from manyhands.errors import UsageError
from manyhands.store.state import flatten, restore
from manyhands.tensors.memory import bytes_of
from manyhands.training.device import pick_device

_NO_ID = "none"
"""What torchrun says where it was not told an id."""


@dataclass(frozen=True)
class Rank:
    """Who this process is: one of `world_size`, the `local_rank`-th of `local_world_size` on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to talk to."""
        return self.world_size == 1


def is_launched() -> bool:
    """Whether this process is a rank of `manyhands launch` or torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank_from_environment() -> Rank:
    """What the launcher told this process; alone where there is no launcher."""
    if not is_launched():
        return Rank()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Rank(*(int(os.environ.get(name, fallback)) for name, fallback in zip(names, "0101", strict=True)))


def launch_id() -> str:
    """What all attempts of one launch have in common, and no other launch has; empty where nobody says so."""
    told = os.environ.get("TORCHELASTIC_RUN_ID", _NO_ID)
    return "" if told == _NO_ID else told


def device_of(rank: Rank, asked: str | torch.device | None, backend: str | None) -> torch.device:
    """The device of this rank: CUDA by local rank, before MPS, before CPU; or the one asked for.

    UsageError where NCCL is asked for without CUDA, and where more ranks than GPUs want one each.
    """
    device = pick_device(asked)
    if backend == "nccl" and device.type != "cuda":
        raise UsageError(
            f"backend='nccl' needs CUDA, and this rank computes on {device.type}: leave backend out"
        )
    if device.type != "cuda" or ":" in str(device):
        return device
    num_devices = torch.cuda.device_count()
    if backend != "gloo" and rank.local_world_size > num_devices:
        raise UsageError(
            f"{rank.local_world_size} ranks on this machine and {num_devices} GPUs: launch with --nproc "
            f"{num_devices}, or let ranks share a GPU with session(backend='gloo')"
        )
    return torch.device("cuda", rank.local_rank % num_devices)


def join_group(device: torch.device, backend: str | None) -> None:
    """Make the process group that the launcher prepared, unless the script has made it."""
    if dist.is_initialized():
        return
    if device.type == "cuda" and backend != "gloo":
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group(backend or "gloo")


def total(values: Tensor, rank: Rank) -> Tensor:
    """The sum over all ranks of a tensor on the CPU, in place."""
    if not rank.is_alone:
        dist.all_reduce(values)
    return values


def gathered(values: Tensor, rank: Rank) -> Tensor:
    """(world size, *shape): the tensor of each rank, on the CPU."""
    if rank.is_alone:
        return values[None]
    everyone = [torch.empty_like(values) for _ in range(rank.world_size)]
    dist.all_gather(everyone, values)
    return torch.stack(everyone)


def from_main(state: object, rank: Rank) -> object:
    """The nested state (see `store.state`) that rank 0 gives; what others give is not looked at."""
    if rank.is_alone:
        return state
    tensors, text = flatten(state) if rank.rank == 0 else ({}, "")
    shapes = {
        name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        for name, tensor in tensors.items()
    }
    text, shapes = json.loads(_text_from_main(json.dumps([text, shapes]), rank))
    received = {name: _tensor_from_main(tensors.get(name), *shape) for name, shape in shapes.items()}
    return restore(received, text)


def _tensor_from_main(mine: Tensor | None, dtype: str, shape: list[int]) -> Tensor:
    tensor = torch.empty(shape, dtype=getattr(torch, dtype)) if mine is None else mine.cpu().contiguous()
    if tensor.numel():
        dist.broadcast(tensor.reshape(-1).view(torch.uint8), 0)
    return tensor


def _text_from_main(text: str, rank: Rank) -> str:
    content = text.encode() if rank.rank == 0 else b""
    length = torch.tensor([len(content)])
    dist.broadcast(length, 0)
    body = torch.empty(int(length), dtype=torch.uint8)
    if rank.rank == 0:
        body = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    dist.broadcast(body, 0)
    return body.numpy().tobytes().decode()


def first_difference(digests: Tensor, names: list[str]) -> Mapping[str, list[int]]:
    """The first name whose digest is not rank 0's on all ranks, with the ranks where it differs; else empty.

    `digests` is (world size, names), int64.
    """
    differs = digests != digests[0]
    for column, name in enumerate(names):
        ranks = differs[:, column].nonzero().flatten().tolist()
        if ranks:
            return {name: ranks}
    return {}


def on_cpu(value: Tensor | float) -> Tensor:
    """A copy in float64; MPS has no such type, so the way there matters."""
    return torch.as_tensor(value).detach().cpu().to(torch.float64, copy=True)


def like(value: Tensor | float, result: Tensor) -> Tensor | float:
    """`result` in the form of `value`: a number, or a tensor of its device and floating type."""
    if isinstance(value, Tensor):
        return result.to(value.dtype if value.is_floating_point() else torch.float32).to(value.device)
    return float(result)


def digest(parameter: Tensor) -> int:
    """64 bits of BLAKE2b over its raw bytes, signed."""
    content = bytes_of(parameter.detach().cpu().contiguous().reshape(-1))
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)
