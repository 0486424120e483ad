"""Views and copies that only move elements: reshaping, slicing, joining, repeating, casting."""

from __future__ import annotations

from math import prod
from typing import Final

from torch import Tensor

from manyhands.programs.operators import infer, require
from manyhands.programs.operators.row import Arguments, Check, Row, row, rows


def _split(a: Arguments) -> str | None:
    """How many parts a split makes is known, and small."""
    own, dim = a["self"], a["dim"]
    if not -own.dim() <= dim < own.dim():
        return f"dim is {dim} of {own.dim()}"
    if a.get("chunks", 1) < 1:
        return f"chunks is {a['chunks']}"
    sizes = a.get("split_size", a.get("split_sizes"))
    if isinstance(sizes, list):
        return None if all(size >= 0 for size in sizes) else f"split_sizes is {sizes}"
    if sizes is not None:
        if sizes < 1:
            return f"split_size is {sizes}"
        return require.num_results("a split", -(-own.shape[dim] // sizes))
    if "chunks" in a:
        return require.num_results("a split", a["chunks"])
    return require.num_results("a split", own.shape[dim] if own.dim() else 0)


def _some(a: Arguments) -> str | None:
    return None if a["tensors"] else "it takes at least one tensor"


def _repeats(a: Arguments) -> str | None:
    """Each dimension times its repeats, as Python ints."""
    own = list(a["self"].shape)
    times = a["repeats"] if "repeats" in a else a["dims"]
    if problem := require.size_problem(times):
        return problem
    longer = max(len(own), len(times))
    padded = [1] * (longer - len(own)) + own
    return require.size_problem(
        [size * count for size, count in zip(padded, [1] * (longer - len(times)) + list(times), strict=True)]
    )


def _interleave(a: Arguments) -> str | None:
    if a["output_size"] is not None:
        return "output_size must be null"
    return require.size_problem([a["self"].numel(), a["repeats"]])


def _padded(a: Arguments) -> str | None:
    """No side grows or shrinks by more than 2^15, and there are as many as dimensions allow."""
    pad = a["pad"] if "pad" in a else a["padding"]
    if (
        len(pad) % 2
        or len(pad) > 2 * a["self"].dim()
        or any(abs(width) > require.MAX_WINDOW for width in pad)
    ):
        return f"padding {list(pad)} does not fit {a['self'].dim()} dimensions"
    return None


def _factor(name: str) -> Check:
    return require.between(name, 1, 1 << 10)


def _unfold(a: Arguments) -> str | None:
    return None if a["step"] >= 1 and a["size"] >= 0 else f"size is {a['size']}, step {a['step']}"


def _viewed(a: Arguments) -> Tensor:
    """Strides are the kernel's to judge when it runs; only the number of elements is ours."""
    own: Tensor = a["self"]
    wanted = list(a["size"] if "size" in a else a["shape"])
    if wanted.count(-1) == 1:
        rest = prod(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = own.numel() // rest if rest else -1
    if prod(wanted) != own.numel() or min(wanted, default=0) < 0:
        raise ValueError(
            f"{tuple(own.shape)} cannot be seen as {list(a['size'] if 'size' in a else a['shape'])}"
        )
    return own.view(wanted) if own.is_contiguous() else infer.blank(wanted, own.dtype)


def _seen_as_other(a: Arguments) -> Tensor:
    return _viewed({"self": a["self"], "size": list(a["other"].shape)})


def _rotated(a: Arguments) -> Tensor:
    own: Tensor = a["self"]
    if len(a["dims"]) != 2:
        raise ValueError(f"dims is {a['dims']}")
    one, two = (infer.wrapped(dim, own.dim()) for dim in a["dims"])
    shape = list(own.shape)
    if a["k"] % 2:
        shape[one], shape[two] = shape[two], shape[one]
    return infer.blank(shape, own.dtype)


def _diagonals(a: Arguments) -> Tensor:
    own: Tensor = a["self"]
    side = own.shape[-1] + abs(a["offset"])
    one, two = (infer.wrapped(a[name], own.dim() + 1) for name in ("dim1", "dim2"))
    shape = list(own.shape[:-1])
    for dim in sorted((one, two)):
        shape.insert(dim, side)
    return infer.blank(shape, own.dtype)


def _joined(a: Arguments) -> Tensor:
    """Sizes agree but along `dim`; an empty vector joins anything, as it always could in torch."""
    tensors = [tensor for tensor in a["tensors"] if tuple(tensor.shape) != (0,)] or a["tensors"][:1]
    first: Tensor = tensors[0]
    dim = infer.wrapped(a["dim"], first.dim())
    rests = {(*tensor.shape[:dim], *tensor.shape[dim + 1 :]) for tensor in tensors}
    if not first.dim() or len(rests) > 1 or any(tensor.dim() != first.dim() for tensor in tensors):
        raise ValueError(f"shapes {[tuple(tensor.shape) for tensor in tensors]} do not join along {dim}")
    shape = list(first.shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return infer.blank(shape, infer.promoted(*a["tensors"]))


def _stacked(a: Arguments) -> Tensor:
    tensors: list[Tensor] = a["tensors"]
    if len({tuple(tensor.shape) for tensor in tensors}) != 1:
        raise ValueError(f"shapes {[tuple(tensor.shape) for tensor in tensors]} do not stack")
    shape = list(tensors[0].shape)
    shape.insert(infer.wrapped(a["dim"], len(shape) + 1), len(tensors))
    return infer.blank(shape, infer.promoted(*tensors))


def _beside(a: Arguments) -> Tensor:
    flat = [tensor.reshape(1) if not tensor.dim() else tensor for tensor in a["tensors"]]
    return _joined({"tensors": flat, "dim": 0 if flat[0].dim() == 1 else 1})


def _above(a: Arguments) -> Tensor:
    tall = [tensor.reshape(1, -1) if tensor.dim() < 2 else tensor for tensor in a["tensors"]]
    return _joined({"tensors": tall, "dim": 0})


def _repeated(a: Arguments) -> Tensor:
    own = list(a["self"].shape)
    times = list(a["repeats"] if "repeats" in a else a["dims"])
    if "repeats" in a and len(times) < len(own):
        raise ValueError(f"{len(times)} repeats for {len(own)} dimensions")
    longer = max(len(own), len(times))
    own, times = [1] * (longer - len(own)) + own, [1] * (longer - len(times)) + times
    return infer.blank([size * count for size, count in zip(own, times, strict=True)], a["self"].dtype)


def _widened(a: Arguments) -> Tensor:
    """Pairs of widths from the last dimension on."""
    pad = a["pad"] if "pad" in a else a["padding"]
    shape = list(a["self"].shape)
    for at in range(len(pad) // 2):
        shape[-1 - at] += pad[2 * at] + pad[2 * at + 1]
    return infer.blank(shape, a["self"].dtype)


def _shuffled(a: Arguments) -> Tensor:
    own, factor = a["self"], a.get("upscale_factor") or a["downscale_factor"]
    if own.dim() < 3 or not own.numel():
        raise ValueError(f"{tuple(own.shape)} is no image")
    *batch, channels, height, width = own.shape
    if "upscale_factor" in a:
        if channels % factor**2:
            raise ValueError(f"{channels} channels in squares of {factor}")
        return infer.blank([*batch, channels // factor**2, height * factor, width * factor], own.dtype)
    if height % factor or width % factor:
        raise ValueError(f"{height} by {width} in squares of {factor}")
    return infer.blank([*batch, channels * factor**2, height // factor, width // factor], own.dtype)


_VIEWS: Final = """
    flatten.using_ints transpose.int t permute movedim.int movedim.intlist moveaxis.int moveaxis.intlist
    swapaxes swapdims squeeze squeeze.dim squeeze.dims unsqueeze expand_as ravel
    contiguous clone detach alias select.int narrow diagonal numpy_T mT adjoint
    to.dtype to.other type_as broadcast_tensors
"""
_PADDINGS: Final = (
    "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"
)

ROWS: Final[tuple[Row, ...]] = (
    *rows(_VIEWS),
    *rows("flip fliplr flipud roll tril triu select_scatter", infer=infer.same()),
    row("slice_scatter.default", infer=infer.same(), unbounded=("start", "end")),
    row("rot90.default", infer=_rotated),
    row("diag_embed.default", infer=_diagonals),
    *rows("view_as reshape_as", infer=_seen_as_other),
    row("view.default", require.sizes("size", -1), infer=_viewed),
    row("reshape.default", require.sizes("shape", -1), infer=_viewed),
    row("expand.default", require.sizes("size", -1)),
    row("broadcast_to.default", require.sizes("size", -1)),
    row("unflatten.int", require.sizes("sizes", -1)),
    row("slice.Tensor", unbounded=("start", "end")),
    *rows("split.Tensor split.sizes split_with_sizes chunk unbind.int", _split),
    *rows("cat concat concatenate", _some, infer=_joined),
    row("stack.default", _some, infer=_stacked),
    row("hstack.default", _some, infer=_beside),
    row("vstack.default", _some, infer=_above),
    *rows("repeat tile", _repeats, infer=_repeated),
    row("repeat_interleave.self_int", _interleave),
    *rows("pad constant_pad_nd", _padded, infer=_widened, infinite=("value",)),
    *rows(_PADDINGS, _padded, infer=_widened),
    row("pixel_shuffle.default", _factor("upscale_factor"), infer=_shuffled),
    row("pixel_unshuffle.default", _factor("downscale_factor"), infer=_shuffled),
    row("channel_shuffle.default", _factor("groups"), infer=infer.same()),
    row("unfold.default", _unfold),
    *rows("meshgrid meshgrid.indexing", _some),
)
