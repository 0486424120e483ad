"""A child that breaks calls: takes a row's sample, changes it, and makes the call if the row's checks let it.

Run as ``python fuzzing.py SEED SECONDS CASE_FILE [KEY …]``. Before each call its text goes to CASE_FILE, so that a
parent knows which one a signal ended. Prints a line of counts, and one for each row of which a call gave
another shape or dtype than the row said; exits 1 then, else 0.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import random
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from samples import all_samples
from torch import Tensor

from manyhands.programs.operators import TABLE
from manyhands.programs.operators.require import listed, size_problem
from manyhands.programs.operators.row import MAX_INT, MAX_RANK, REQUIRED, Kind, Parameter, Result, Row

INTS = [
    -(1 << 40),
    -(1 << 31),
    -100,
    -3,
    -2,
    -1,
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    16,
    100,
    1000,
    (1 << 31) - 1,
    1 << 31,
    1 << 40,
]
INDICES = [-(1 << 63), -1000000, -5, -2, -1, 0, 1, 4, 5, 6, 100, 1 << 31, (1 << 63) - 1]
FLOATS = [-1e30, -2.0, -1.0, -0.5, 0.0, 1e-30, 0.3, 0.5, 1.0, 2.0, 2.5, 1e30]
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
]
MAX_ELEMENTS = 1 << 20


def changed_tensor(rng: random.Random, tensor: Tensor) -> Tensor:
    """Another shape, memory order, dtype, or other values."""
    shape = list(tensor.shape)
    match rng.randrange(10):
        case 0 | 1 if shape:
            at = rng.randrange(len(shape))
            shape[at] = rng.choice([0, 1, max(shape[at] - 1, 0), shape[at] + 1, 2 * shape[at], 17, 64])
            return _like(tensor, shape)
        case 2 if shape:
            del shape[rng.randrange(len(shape))]
            return _like(tensor, shape)
        case 3:
            shape.insert(rng.randrange(len(shape) + 1), rng.choice([0, 1, 1, 2, 3]))
            return _like(tensor, shape)
        case 4 if len(shape) > 1:
            return tensor.transpose(rng.randrange(len(shape)), rng.randrange(len(shape)))
        case 5 if shape:
            at = rng.randrange(len(shape))
            return tensor.narrow(at, 0, min(1, shape[at])).expand(shape) if shape[at] else tensor
        case 6 if shape:
            return tensor[..., :: rng.choice([2, 3])]
        case 7 | 8:
            return tensor.clone() if tensor.numel() == 0 else _with_values(rng, tensor.clone())
        case _:
            return tensor.to(rng.choice(DTYPES))


def _like(tensor: Tensor, shape: list[int]) -> Tensor:
    if tensor.is_floating_point():
        return torch.rand(shape, dtype=torch.float32).to(tensor.dtype)
    return torch.randint(0, 2 if tensor.dtype == torch.bool else 4, shape).to(tensor.dtype)


def _with_values(rng: random.Random, tensor: Tensor) -> Tensor:
    places = tensor.view(-1) if tensor.is_contiguous() else tensor.reshape(-1)
    at = rng.randrange(tensor.numel())
    if tensor.is_floating_point():
        places[at] = rng.choice([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 0.0])
    elif tensor.dtype != torch.bool:
        limits = torch.iinfo(tensor.dtype)
        places[at] = min(max(rng.choice(INDICES), limits.min), limits.max)
    return places.reshape(tensor.shape)


def changed(rng: random.Random, value: Any, tensors: list[Tensor]) -> Any:
    """Another value of the kind, sometimes of another."""
    if isinstance(value, Tensor):
        if rng.random() < 0.1:
            return rng.choice(tensors)
        if tensors and rng.random() < 0.02:
            return value.expand(value.shape)
        return changed_tensor(rng, value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, *INTS])
    if isinstance(value, float):
        return rng.choice(FLOATS)
    if isinstance(value, list) and value:
        items = list(value)
        at = rng.randrange(len(items))
        match rng.randrange(6):
            case 0:
                del items[at]
            case 1:
                items.insert(at, items[at])
            case 2 if isinstance(items[at], Tensor) or items[at] is None:
                items[at] = rng.choice([*tensors, None])
            case _:
                items[at] = changed(rng, items[at], tensors)
        return items
    if value is None:
        return rng.choice([None, *tensors]) if tensors else None
    return value


TYPES: dict[Kind, tuple[type, ...]] = {
    Kind.TENSOR: (Tensor,),
    Kind.INT: (int,),
    Kind.SCALAR: (bool, int, float),
    Kind.FLOAT: (int, float),
    Kind.BOOL: (bool,),
    Kind.DTYPE: (torch.dtype,),
    Kind.MEMORY_FORMAT: (torch.memory_format,),
    Kind.WORD: (str,),
    Kind.EQUATION: (str,),
}
ITEMS = {
    Kind.TENSORS: Kind.TENSOR,
    Kind.MAYBE_TENSORS: Kind.TENSOR,
    Kind.INTS: Kind.INT,
    Kind.FLOATS: Kind.FLOAT,
}


def is_kind(row: Row, named: dict[str, Any]) -> bool:
    """What the parser would say: each argument of its parameter's kind and bounds."""
    return all(
        _fits(parameter, named[parameter.name])
        if parameter.name in named
        else parameter.default is not REQUIRED
        for parameter in row.parameters
    )


def _fits(parameter: Parameter, value: Any) -> bool:
    if value is None:
        return parameter.optional
    if parameter.kind not in ITEMS:
        kinds = TYPES[parameter.kind] + (TYPES[Kind.SCALAR] if parameter.number else ())
        is_large = type(value) is int and parameter.kind is Kind.INT and abs(value) > MAX_INT
        return type(value) in kinds and (parameter.unbounded or not is_large)
    if not isinstance(value, list):
        return False
    item_types = TYPES[ITEMS[parameter.kind]]
    allows_null = parameter.kind is Kind.MAYBE_TENSORS
    return all(type(item) in item_types or (item is None and allows_null) for item in value)


def on_meta(value: Any) -> Any:
    if isinstance(value, list):
        return [on_meta(item) for item in value]
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return value


def expected(row: Row, named: dict[str, Any]) -> list[Tensor] | None:
    """The blanks a row promises; None where it refuses the call or it is too large to make here."""
    arguments = {p.name: on_meta(named.get(p.name, p.default)) for p in row.parameters}
    if any(tensor.dim() > MAX_RANK for value in arguments.values() for tensor in listed(value)):
        return None
    try:
        if row.problem(arguments) is not None:
            return None
        if row.workspace is not None and row.workspace(arguments) > 8 * MAX_ELEMENTS:
            return None
        result = row.infer(arguments) if row.infer is not None else _asked(row, arguments)
        results = listed(result)
        if row.flops is not None and row.flops(arguments, results) > 10**8:
            return None
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        return None
    large = any(size_problem(tensor.shape) or tensor.numel() > MAX_ELEMENTS for tensor in results)
    return None if large or not results or len(results) > 512 else results


def _asked(row: Row, arguments: dict[str, Any]) -> Any:
    args = [arguments[p.name] for p in row.parameters if not p.keyword_only]
    return row.call(*args, **{p.name: arguments[p.name] for p in row.parameters if p.keyword_only})


def text_of(key: str, named: dict[str, Any]) -> str:
    def one(value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(one, value))}]"
        if isinstance(value, Tensor):
            extremes = (
                f" {value.min()}..{value.max()}" if value.numel() and not value.is_floating_point() else ""
            )
            return f"{value.dtype} {tuple(value.shape)} strides {value.stride()}{extremes}"
        return repr(value)

    return f"{key}({', '.join(f'{name}={one(value)}' for name, value in named.items())})"


class Fence:
    """Memory that ends at a page nobody may touch: reading one element too far is a signal, not a wrong number."""

    def __init__(self, num_regions: int, num_bytes: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        page = mmap.PAGESIZE
        self.num_bytes = -(-num_bytes // page) * page
        self.starts: list[int] = []
        self._maps = [mmap.mmap(-1, self.num_bytes + page) for _ in range(num_regions)]
        for each in self._maps:
            start = ctypes.addressof(ctypes.c_char.from_buffer(each))
            if libc.mprotect(ctypes.c_void_p(start + self.num_bytes), ctypes.c_size_t(page), 0):
                raise OSError(ctypes.get_errno(), "mprotect")
            self.starts.append(start)
        self._next = 0

    def copy(self, tensor: Tensor) -> Tensor:
        """`tensor` with its strides, its last element the last before a fence; itself where it is too large."""
        if not tensor.numel():
            return tensor
        reach = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        num_bytes = reach * tensor.element_size()
        if num_bytes > self.num_bytes:
            return tensor
        start = self.starts[self._next] + self.num_bytes - num_bytes
        self._next = (self._next + 1) % len(self.starts)
        memory = (ctypes.c_char * num_bytes).from_address(start)
        flat = torch.frombuffer(memory, dtype=tensor.dtype)
        flat.copy_(torch.as_strided(tensor, (reach,), (1,)))
        return torch.as_strided(flat, tensor.shape, tensor.stride())

    def copies(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.copies(item) for item in value]
        return self.copy(value) if isinstance(value, Tensor) else value


def attempt(row: Row, named: dict[str, Any], promised: list[Tensor]) -> str | None:
    """Make the call, and its backward; why it broke its promise."""
    floats = [tensor for value in named.values() for tensor in listed(value) if tensor.is_floating_point()]
    if not row.writes:
        for tensor in floats:
            if tensor.is_leaf:
                tensor.requires_grad_(True)
    args = [named.get(p.name, p.default) for p in row.parameters if not p.keyword_only]
    kwargs = {p.name: named[p.name] for p in row.parameters if p.keyword_only and p.name in named}
    if row.needs_device:
        kwargs["device"] = torch.device("cpu")
    try:
        result = row.call(*args, **kwargs)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        return None
    results = listed(result)
    said = [(tuple(blank.shape), blank.dtype) for blank in promised]
    got = [(tuple(tensor.shape), tensor.dtype) for tensor in results]
    if said != got:
        return f"promised {said}, gave {got}"
    with contextlib.suppress(ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        torch.autograd.backward([one.sum() for one in results if one.requires_grad])
    return None


def main(seed: int, seconds: float, case_file: Path, keys: list[str]) -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    rows = [
        row for key, row in TABLE.items() if row.result is not Result.NUMBER and (not keys or key in keys)
    ]
    samples = all_samples()
    fence = Fence(32, 1 << 16)
    until = time.monotonic() + seconds
    tried = made = 0
    broken: dict[str, str] = {}
    with case_file.open("r+") as case:
        while time.monotonic() < until:
            row = rng.choice(rows)
            args, kwargs = rng.choice(samples[row.key])
            named = {p.name: value for p, value in zip(row.parameters, args, strict=False)} | dict(kwargs)
            named = {name: _copied(value) for name, value in named.items()}
            tensors = [tensor for value in named.values() for tensor in listed(value)]
            for _ in range(rng.randrange(1, 4)):
                name = rng.choice([p.name for p in row.parameters])
                parameter = next(p for p in row.parameters if p.name == name)
                if name in named or parameter.default is not REQUIRED:
                    named[name] = changed(rng, named.get(name, parameter.default), tensors)
            tried += 1
            if not is_kind(row, named):
                continue
            text = text_of(row.key, named)
            case.seek(0)
            case.write(f"{text}\n{' ' * 4000}")
            case.flush()
            if (promised := expected(row, named)) is None:
                continue
            made += 1
            fenced = {name: fence.copies(value) for name, value in named.items()}
            if problem := attempt(row, fenced, promised):
                broken.setdefault(row.key, f"{text}: {problem}")
    sys.stdout.write("\n".join([f"{tried} tried, {made} made", *broken.values(), ""]))
    return 1 if broken else 0


def _copied(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value.detach().clone() if isinstance(value, Tensor) else value


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
