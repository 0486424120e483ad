"""Windows over images: convolutions and their transposes, pooling, up-sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, Final

import torch
from torch import Tensor

from manyhands.programs.operators import infer, require
from manyhands.programs.operators.row import MAX_INT, Arguments, Check, Row, row, rows


def _convolution(num_dims: int | None, transposed: bool = False) -> Check:
    """Input ``([N,] C, *size)`` and weight ``(out, C / groups, *kernel)``, floating and of one dtype."""

    def check(a: Arguments) -> str | None:
        own, weight, groups = a["input"], a["weight"], a["groups"]
        dims = weight.dim() - 2 if num_dims is None else num_dims
        if not 1 <= dims <= 3 or weight.dim() != dims + 2 or own.dim() not in (dims + 1, dims + 2):
            return f"input {tuple(own.shape)} and weight {tuple(weight.shape)} in {dims} dimensions"
        if any(size < 1 for size in weight.shape) or any(size < 1 for size in own.shape[-dims - 1 :]):
            return f"input {tuple(own.shape)} or weight {tuple(weight.shape)} is empty"
        if (
            not own.numel() and own.dtype != weight.dtype
        ):  # which only a kernel with something to do would notice
            return f"an input without samples is {own.dtype}, the weight {weight.dtype}"
        is_transposed = a.get("transposed", transposed)
        channels, outputs = (
            own.shape[-dims - 1],
            weight.shape[1] * groups if is_transposed else weight.shape[0],
        )
        expected = weight.shape[0] if is_transposed else weight.shape[1] * groups
        if not 1 <= groups <= channels or channels % groups or outputs % groups or channels != expected:
            return f"{channels} channels in {groups} groups for a weight of {tuple(weight.shape)}"
        if not require.vector(a["bias"], outputs):
            return f"the bias is not a vector of {outputs}"
        return _steps(a, dims)

    return check


_LEAST: Final = {"stride": 1, "dilation": 1, "padding": 0, "output_padding": 0}


def _steps(a: Arguments, dims: int) -> str | None:
    for name, low in _LEAST.items():
        given = a.get(name, [])
        if isinstance(given, str):
            continue
        if len(given) not in (0, 1, dims) or any(not low <= value <= require.MAX_WINDOW for value in given):
            return f"{name} is {list(given)} in {dims} dimensions"
    return None


def _convolution_flops(a: Arguments, results: list[Tensor]) -> int:
    """Each result sums over a kernel's window of one group's channels; transposed, each input spreads so."""
    weight, own = a["weight"], a["input"]
    if results[0].numel() == 0:
        return 0
    per_place = 2 * prod(weight.shape[1:])
    return int(per_place * max(results[0].numel(), own.numel()))


def _convolution_workspace(a: Arguments) -> int:
    """A padded copy of the input for "same"; for float64, which oneDNN does not take, windows unrolled to columns."""
    own, weight = a["input"], a["weight"]
    dims = weight.dim() - 2
    if own.dtype == torch.float64:
        return int(8 * own.numel() * prod(weight.shape[2:]))
    if a["padding"] != "same":
        return 0
    reach = [
        gap * (window - 1)
        for gap, window in zip(_spread(a["dilation"], dims, 1), weight.shape[2:], strict=True)
    ]
    sizes = [size + more for size, more in zip(own.shape[own.dim() - dims :], reach, strict=True)]
    return int(own.element_size() * prod(own.shape[: own.dim() - dims]) * prod(sizes))


def _pooling(dims: int) -> Check:
    """``([N,] C, *size)``; windows, steps and gaps positive, padding at most half a window."""

    def check(a: Arguments) -> str | None:
        if a["self"].dim() not in (dims + 1, dims + 2):
            return f"input has {a['self'].dim()} dimensions, not {dims + 1} or {dims + 2}"
        kernel = a["kernel_size"]
        if len(kernel) not in (1, dims) or any(not 1 <= value <= require.MAX_WINDOW for value in kernel):
            return f"kernel_size is {list(kernel)}"
        widest = list(kernel) * (dims // len(kernel))
        padding = list(a["padding"]) * (dims // max(len(a["padding"]), 1))
        if any(2 * pad > size for pad, size in zip(padding, widest, strict=False)):
            return f"padding {padding} is more than half of the kernel {widest}"
        gaps = _spread(a.get("dilation"), dims, 1)
        if any(
            pad and gap > size for pad, gap, size in zip(padding, gaps, a["self"].shape[-dims:], strict=False)
        ):
            # A window whose taps all lie outside has no maximum; its backward writes behind the image.
            return f"dilation {gaps} steps over an image of {tuple(a['self'].shape[-dims:])}"
        if a.get("divisor_override") == 0:
            return "divisor_override is 0"
        return _steps(a, dims)

    return check


def _pooling_flops(a: Arguments, results: list[Tensor]) -> int:
    kernel, dims = a["kernel_size"], max(results[0].dim() - 2, 1)
    return results[0].numel() * (prod(kernel) if len(kernel) > 1 else kernel[0] ** min(dims, 3))


def _adaptive(dims: int) -> Check:
    def check(a: Arguments) -> str | None:
        own, output = a["self"], a["output_size"]
        if own.dim() not in (dims + 1, dims + 2) or any(size < 1 for size in own.shape[-dims - 1 :]):
            return f"input {tuple(own.shape)} in {dims} dimensions"
        if len(output) != dims or any(not 1 <= size <= require.MAX_WINDOW for size in output):
            return f"output_size is {list(output)}"
        return None

    return check


def _upsampling(dims: int) -> Check:
    """Either a size or factors, never both: a kernel takes a factor that contradicts the size at its word."""

    def check(a: Arguments) -> str | None:
        own: Tensor = a["input"] if "input" in a else a["self"]
        if own.dim() != dims + 2 or any(size < 1 for size in own.shape):
            return f"input {tuple(own.shape)} is not ({'N, C' + ', size' * dims}), all at least 1"
        return _target_problem(a, [int(size) for size in own.shape[2:]])

    return check


def _target_problem(a: Arguments, sizes: list[int]) -> str | None:
    factors: Any = a.get("scale_factors")
    if any(value is not None for name, value in a.items() if name.startswith("scales")):
        return "factors beside a size are not taken"
    target = a["output_size"]
    if (target is None) == (factors is None):
        return "it takes a size or factors, one of the two"
    if target is None:
        if len(factors) != len(sizes) or any(not 2.0**-10 <= factor <= 2.0**10 for factor in factors):
            return f"scale_factors is {factors}"
        target = _target(a, sizes)
    if len(target) != len(sizes) or any(not 1 <= size <= MAX_INT for size in target):
        return f"a size of {target} from {sizes}"
    return None


def _spread(values: Any, dims: int, default: int) -> list[int]:
    """One value a dimension, of none, one or all."""
    given = list(values or [default])
    return given * dims if len(given) == 1 else given


def _places(size: int, window: int, stride: int, padding: int, dilation: int) -> int:
    """How many windows fit (torch.nn.Conv2d's formula)."""
    return (size + 2 * padding - dilation * (window - 1) - 1) // stride + 1


def _convolved(a: Arguments) -> Tensor:
    own, weight = a["input"], a["weight"]
    dims = weight.dim() - 2
    kernel, sizes = weight.shape[2:], own.shape[own.dim() - dims :]
    stride, dilation = _spread(a["stride"], dims, 1), _spread(a["dilation"], dims, 1)
    if isinstance(a["padding"], str):
        if a["padding"] not in ("same", "valid") or (a["padding"] == "same" and max(stride) > 1):
            raise ValueError(f"padding {a['padding']!r} with a stride of {stride}")
        if a["padding"] == "same":
            return infer.blank([*own.shape[: own.dim() - dims - 1], weight.shape[0], *sizes], own.dtype)
    padding = [0] * dims if isinstance(a["padding"], str) else _spread(a["padding"], dims, 0)
    made = [_places(*each) for each in zip(sizes, kernel, stride, padding, dilation, strict=True)]
    if min(made) < 1:
        raise ValueError(f"a kernel of {list(kernel)} does not fit into {list(sizes)}")
    return infer.blank([*own.shape[: own.dim() - dims - 1], weight.shape[0], *made], own.dtype)


def _transposed(a: Arguments) -> Tensor:
    own, weight = a["input"], a["weight"]
    dims = weight.dim() - 2
    steps = [_spread(a[name], dims, low) for name, low in _LEAST.items()]
    sizes = own.shape[own.dim() - dims :]
    made = [
        (size - 1) * stride - 2 * padding + dilation * (window - 1) + extra + 1
        for size, window, stride, dilation, padding, extra in zip(
            sizes, weight.shape[2:], *steps, strict=True
        )
    ]
    if min(made) < 1:
        raise ValueError(f"padding leaves nothing of {list(sizes)}")
    channels = weight.shape[1] * a["groups"]
    return infer.blank([*own.shape[: own.dim() - dims - 1], channels, *made], own.dtype)


def _either(a: Arguments) -> Tensor:
    return _transposed(a) if a["transposed"] else _convolved(a)


def _pooled(dims: int) -> infer.Infer:
    def result(a: Arguments) -> Tensor:
        own: Tensor = a["self"]
        kernel = _spread(a["kernel_size"], dims, 1)
        stride = _spread(a["stride"], dims, 1) if a["stride"] else kernel
        padding, dilation = _spread(a["padding"], dims, 0), _spread(a.get("dilation"), dims, 1)
        sizes = own.shape[own.dim() - dims :]
        made = []
        for size, window, step, pad, gap in zip(sizes, kernel, stride, padding, dilation, strict=True):
            spare = size + 2 * pad - gap * (window - 1) - 1
            number = (-(-spare // step) if a["ceil_mode"] else spare // step) + 1
            # A last window that starts in the padding behind the image is left out.
            made.append(number - 1 if a["ceil_mode"] and (number - 1) * step >= size + pad else number)
        if min(made) < 1:
            raise ValueError(f"a window of {kernel} does not fit into {list(sizes)}")
        return infer.blank([*own.shape[: own.dim() - dims], *made], own.dtype)

    return result


def _adapted(dims: int, count: int) -> infer.Infer:
    def result(a: Arguments) -> Any:
        own: Tensor = a["self"]
        shape = [*own.shape[: own.dim() - dims], *a["output_size"]]
        return (
            infer.blank(shape, own.dtype)
            if count == 1
            else [
                infer.blank(shape, own.dtype),
                infer.blank(shape, torch.int64),
            ]
        )

    return result


def _upsampled(a: Arguments) -> Tensor:
    own: Tensor = a["input"] if "input" in a else a["self"]
    return infer.blank([*own.shape[:2], *_target(a, own.shape[2:])], own.dtype)


def _target(a: Arguments, sizes: Sequence[int]) -> list[int]:
    if a["output_size"] is not None:
        return list(a["output_size"])
    return [int(size * factor) for size, factor in zip(sizes, a["scale_factors"], strict=True)]


def _convolutions() -> Iterator[Row]:
    costs: dict[str, Any] = {"flops": _convolution_flops, "workspace": _convolution_workspace}
    overloads = {1: "default", 2: "input", 3: "input"}
    for dims in (1, 2, 3):
        yield from rows(
            f"conv{dims}d.default conv{dims}d.padding", _convolution(dims), infer=_convolved, **costs
        )
        key = f"conv_transpose{dims}d.{overloads[dims]}"
        yield row(key, _convolution(dims, True), infer=_transposed, **costs)
    yield row("convolution.default", _convolution(None), infer=_either, **costs)


def _poolings() -> Iterator[Row]:
    for dims in (1, 2, 3):
        keys = f"max_pool{dims}d avg_pool{dims}d"
        yield from rows(keys, _pooling(dims), infer=_pooled(dims), flops=_pooling_flops)
        yield row(f"adaptive_avg_pool{dims}d.default", _adaptive(dims), infer=_adapted(dims, 1))
        yield row(f"adaptive_max_pool{dims}d.default", _adaptive(dims), infer=_adapted(dims, 2))


def _upsamplings() -> Iterator[Row]:
    kinds = {1: "nearest1d linear1d", 2: "nearest2d bilinear2d bicubic2d", 3: "nearest3d trilinear3d"}
    for dims, names in kinds.items():
        for name in names.split():
            keys = f"upsample_{name}.vec upsample_{name}.default"
            yield from rows(keys, _upsampling(dims), infer=_upsampled)


ROWS: Final[tuple[Row, ...]] = (*_convolutions(), *_poolings(), *_upsamplings())
