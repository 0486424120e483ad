"""For every row of the table, calls that a model makes; tests run them, change them, and break them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from manyhands.programs.operators import TABLE

Call = tuple[tuple[Any, ...], dict[str, Any]]


def call(*args: Any, **kwargs: Any) -> Call:
    return args, kwargs


def f(*shape: int) -> torch.Tensor:
    return torch.rand(shape) * 0.8 + 0.1


def i(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape)


def b(*shape: int) -> torch.Tensor:
    return torch.rand(shape) > 0.5


def _rnn(gates: int, layers: int = 2, both: bool = True) -> list[torch.Tensor]:
    weights = []
    for layer in range(layers):
        width = 5 if layer == 0 else 8
        for _ in range(2 if both else 1):
            weights += [f(4 * gates, width), f(4 * gates, 4), f(4 * gates), f(4 * gates)]
    return weights


def _defaults() -> dict[str, list[Call]]:
    x, y = f(3, 4), f(3, 4)
    one = {
        "pow.Scalar": call(2.0, x),
        "where.ScalarSelf": call(b(3, 4), 1.0, x),
        "where.Scalar": call(b(3, 4), 1.0, 0.0),
        "lerp.Scalar": call(x, y, 0.3),
        "lerp_.Scalar": call(x, y, 0.3),
        "lerp.Tensor": call(x, y, f(4)),
        "addcmul.default": call(x, y, f(4)),
        "addcdiv.default": call(x, y, f(4)),
        "addcmul_.default": call(x, y, y, value=0.5),
        "addcdiv_.default": call(x, y, y, value=0.5),
        "where.self": call(b(3, 4), x, y),
        "where.ScalarOther": call(b(4), x, float("-inf")),
        "masked_fill.Scalar": call(x, b(4), float("-inf")),
        "masked_fill.Tensor": call(x, b(3, 4), torch.tensor(2.0)),
        "masked_fill_.Scalar": call(x, b(3, 4), 0),
        "masked_fill_.Tensor": call(x, b(3, 4), torch.tensor(2.0)),
        "fill_.Scalar": call(x, 1.0),
        "fill_.Tensor": call(x, torch.tensor(1.0)),
        "clamp.Tensor": call(x, f(4), f(3, 4)),
        "copy_.default": call(x, f(4)),
        "prelu.default": call(x, f(4)),
        "threshold.default": call(x, 0.1, 0.0),
        "threshold_.default": call(x, 0.1, 0.0),
        "glu.default": call(x),
        "div.Tensor_mode": call(x, y, rounding_mode="floor"),
        "div.Scalar_mode": call(i(9, 3), 2, rounding_mode="trunc"),
        "float_power.Tensor_Scalar": call(x, 2.0),
        "view.default": call(x, [2, -1]),
        "reshape.default": call(x.t(), [2, 6]),
        "unflatten.int": call(x, 1, [2, 2]),
        "expand.default": call(f(3, 1), [2, -1, 4]),
        "broadcast_to.default": call(f(3, 1), [3, 4]),
        "view_as.default": call(x, f(2, 6)),
        "reshape_as.default": call(x, f(2, 6)),
        "expand_as.default": call(f(1, 4), x),
        "transpose.int": call(x, 0, 1),
        "permute.default": call(f(2, 3, 4), [2, 0, 1]),
        "movedim.int": call(x, 0, 1),
        "moveaxis.int": call(x, 0, 1),
        "movedim.intlist": call(x, [0], [1]),
        "moveaxis.intlist": call(x, [0], [1]),
        "swapaxes.default": call(x, 0, 1),
        "swapdims.default": call(x, 0, 1),
        "squeeze.dim": call(f(3, 1), 1),
        "squeeze.dims": call(f(3, 1), [1]),
        "unsqueeze.default": call(x, 1),
        "select.int": call(x, 1, 2),
        "narrow.default": call(x, 1, 1, 2),
        "slice.Tensor": call(x, 1, 0, (1 << 63) - 1),
        "roll.default": call(x, [1], [0]),
        "rot90.default": call(x, 1, [0, 1]),
        "flip.default": call(x, [0]),
        "to.dtype": call(x, torch.float64),
        "to.other": call(x, i(3, 3)),
        "type_as.default": call(x, i(3, 3)),
        "broadcast_tensors.default": call([f(3, 1), f(4)]),
        "select_scatter.default": call(x, f(3), 1, 0),
        "slice_scatter.default": call(x, f(3, 2), 1, 0, 2),
        "split.Tensor": call(x, 2, 1),
        "split.sizes": call(x, [1, 3], 1),
        "split_with_sizes.default": call(x, [1, 3], 1),
        "chunk.default": call(x, 2, 1),
        "unbind.int": call(x, 0),
        "repeat.default": call(x, [2, 1, 1]),
        "tile.default": call(x, [2]),
        "repeat_interleave.self_int": call(x, 2, 1),
        "pad.default": call(f(1, 2, 3, 3), [1, 1, 1, 1], "reflect"),
        "constant_pad_nd.default": call(x, [1, 0], -100.0),
        "reflection_pad1d.default": call(f(2, 3, 4), [1, 1]),
        "replication_pad1d.default": call(f(2, 3, 4), [1, 1]),
        "reflection_pad2d.default": call(f(1, 2, 3, 4), [1] * 4),
        "replication_pad2d.default": call(f(1, 2, 3, 4), [1] * 4),
        "reflection_pad3d.default": call(f(1, 2, 3, 4, 3), [1] * 6),
        "replication_pad3d.default": call(f(1, 2, 3, 4, 3), [1] * 6),
        "pixel_shuffle.default": call(f(1, 4, 2, 2), 2),
        "pixel_unshuffle.default": call(f(1, 1, 4, 4), 2),
        "channel_shuffle.default": call(f(1, 4, 2, 2), 2),
        "unfold.default": call(x, 1, 2, 1),
        "mT.default": call(x),
        "meshgrid.default": call([f(3), f(2)]),
        "meshgrid.indexing": call([f(3), f(2)], indexing="ij"),
        "cumsum.default": call(x, 1),
        "cumprod.default": call(x, 1),
        "cummax.default": call(x, 1),
        "cummin.default": call(x, 1),
        "logcumsumexp.default": call(x, 1),
        "sum.dim_IntList": call(x, [1], True),
        "mean.dim": call(x, [-1], True),
        "prod.dim_int": call(x, 1),
        "var.dim": call(x, [1]),
        "std.dim": call(x, [1]),
        "var.correction": call(x, [1], correction=0),
        "std.correction": call(x, [1], correction=1),
        "var_mean.correction": call(x, [1]),
        "amax.default": call(x, [1]),
        "amin.default": call(x, [0, 1]),
        "max.dim": call(x, 1),
        "min.dim": call(x, 1),
        "any.dim": call(x, 1),
        "any.dims": call(x, [1]),
        "all.dim": call(x, 1),
        "all.dims": call(x, [1]),
        "count_nonzero.dim_IntList": call(x, [1]),
        "logsumexp.default": call(x, [1]),
        "norm.ScalarOpt_dim": call(x, 2, [1]),
        "linalg_vector_norm.default": call(x, 2, [1]),
        "softmax.int": call(x, 1),
        "log_softmax.int": call(x, -1),
        "special_softmax.default": call(x, 1),
        "special_log_softmax.default": call(x, 1),
        "topk.default": call(x, 2),
        "sort.stable": call(x, stable=True),
        "argsort.stable": call(x, stable=True),
        "renorm.default": call(x, 2, 0, 1.0),
        "mm.default": call(x, f(4, 2)),
        "bmm.default": call(f(2, 3, 4), f(2, 4, 5)),
        "matmul.default": call(f(2, 3, 4), f(4, 5)),
        "mv.default": call(x, f(4)),
        "dot.default": call(f(4), f(4)),
        "inner.default": call(x, y),
        "outer.default": call(f(3), f(4)),
        "addmm.default": call(f(5), x, f(4, 5)),
        "addmv.default": call(f(3), x, f(4)),
        "baddbmm.default": call(f(2, 3, 5), f(2, 3, 4), f(2, 4, 5), beta=0, alpha=0.5),
        "addbmm.default": call(f(3, 5), f(2, 3, 4), f(2, 4, 5)),
        "addr.default": call(f(3, 4), f(3), f(4)),
        "linear.default": call(x, f(5, 4), f(5)),
        "bilinear.default": call(f(3, 4), f(3, 5), f(2, 4, 5), f(2)),
        "einsum.default": call("bik,bjk->bij", [f(2, 3, 4), f(2, 5, 4)]),
        "tensordot.default": call(x, f(4, 2), [1], [0]),
        "cdist.default": call(x, f(2, 4)),
        "cosine_similarity.default": call(x, y),
        "pairwise_distance.default": call(x, y),
        "batch_norm.default": call(f(4, 3, 2), f(3), f(3), f(3), f(3), True, 0.1, 1e-5, False),
        "instance_norm.default": call(f(4, 3, 2), f(3), f(3), f(3), f(3), True, 0.1, 1e-5, False),
        "layer_norm.default": call(x, [4], f(4), f(4)),
        "rms_norm.default": call(x, [4], f(4)),
        "group_norm.default": call(f(2, 4, 3), 2, f(4), f(4)),
        "embedding.default": call(f(7, 3), i(7, 2, 4), 0),
        "index.Tensor": call(f(3, 4, 5), [i(3, 2), None, i(5, 2)]),
        "index_put.default": call(x, [i(3, 2)], f(2, 4), True),
        "index_put_.default": call(x, [i(3, 2)], f(2, 4)),
        "index_select.default": call(x, 1, i(4, 6)),
        "index_add.default": call(x, 0, i(3, 5), f(5, 4)),
        "index_add_.default": call(x, 0, i(3, 5), f(5, 4)),
        "index_copy.default": call(x, 0, i(3, 2), f(2, 4)),
        "index_fill.int_Scalar": call(x, 0, i(3, 2), 1.0),
        "gather.default": call(x, 1, i(4, 3, 2)),
        "take_along_dim.default": call(x, i(4, 3, 2), 1),
        "one_hot.default": call(i(5, 3), 5),
        "scatter.value": call(x, 1, i(4, 3, 2), 1.0),
        "scatter_.value": call(x, 1, i(4, 3, 2), 1.0),
        "nll_loss2d.default": call(f(2, 5, 3, 3), i(5, 2, 3, 3)),
        "nll_loss_nd.default": call(f(2, 5, 3), i(5, 2, 3)),
        "nll_loss.default": call(f(3, 5), i(5, 3), f(5)),
        "cross_entropy_loss.default": call(f(3, 5), i(5, 3), f(5), 1, -100, 0.1),
        "multi_margin_loss.default": call(f(3, 5), i(5, 3)),
        "margin_ranking_loss.default": call(f(3), f(3), f(3).sign()),
        "cosine_embedding_loss.default": call(x, y, f(3).sign()),
        "triplet_margin_loss.default": call(x, y, f(3, 4)),
        "poisson_nll_loss.default": call(x, y, True, False, 1e-8, 1),
        "scaled_dot_product_attention.default": call(f(2, 2, 5, 4), f(2, 2, 6, 4), f(2, 2, 6, 4), b(5, 6)),
        "lstm.input": call(f(6, 3, 5), [f(4, 3, 4), f(4, 3, 4)], _rnn(4), True, 2, 0.1, True, True, False),
        "gru.input": call(f(3, 6, 5), f(4, 3, 4), _rnn(3), True, 2, 0.0, True, True, True),
        "scalar_tensor.default": call(1.0, dtype=torch.float64),
        "arange.default": call(5),
        "arange.start": call(1, 5),
        "arange.start_step": call(1, 9, 2),
        "linspace.default": call(0.0, 1.0, 5),
        "eye.default": call(3),
        "eye.m": call(3, 4),
        "full.default": call([2, 3], 1.5),
        "full_like.default": call(x, 3),
        "new_full.default": call(x, [2], 3.0),
        "bernoulli.p": call(x, 0.3),
        "randint.default": call(5, [2, 3]),
        "randint.low": call(1, 5, [2, 3]),
        "randint_like.default": call(x, 5),
        "randint_like.low_dtype": call(x, 1, 5),
        "randperm.default": call(5),
        "sym_size.int": call(x, 0),
        "sym_numel.default": call(x),
        "int.neg": call(3),
        "conv_transpose1d.default": call(f(1, 4, 5), f(4, 2, 3), f(4), [2], [1], [1], 2),
        "conv_transpose2d.input": call(f(1, 4, 5, 5), f(4, 2, 3, 3), f(4), [2, 2], [1, 1], [1, 1], 2),
        "conv_transpose3d.input": call(f(1, 2, 3, 3, 3), f(2, 2, 2, 2, 2), f(2)),
        "convolution.default": call(
            f(1, 4, 5, 5), f(6, 2, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 2
        ),
    }
    samples: dict[str, list[Call]] = {key: [value] for key, value in one.items()}
    for n in (1, 2, 3):
        image, weight = f(1, 4, *[6] * n), f(6, 2, *[3] * n)
        samples[f"conv{n}d.default"] = [call(image, weight, f(6), [2] * n, [1] * n, [1] * n, 2)]
        samples[f"conv{n}d.padding"] = [call(image, weight, f(6), [1] * n, "same", [1] * n, 2)]
        samples[f"max_pool{n}d.default"] = [call(image, [3] * n, [2] * n, [1] * n, [1] * n, True)]
        samples[f"avg_pool{n}d.default"] = [call(image, [3] * n, [2] * n, [1] * n)]
        for kind in ("max", "avg"):
            samples[f"adaptive_{kind}_pool{n}d.default"] = [call(image, [2] * n)]
        for name in (
            "nearest",
            {1: "linear", 2: "bilinear", 3: "trilinear"}[n],
            *(["bicubic"] if n == 2 else []),
        ):
            align = [] if name == "nearest" else [False]
            samples[f"upsample_{name}{n}d.vec"] = [
                call(image, None, *align, [2.0] * n),
                call(image, [3] * n, *align, None),
            ]
            samples[f"upsample_{name}{n}d.default"] = [call(image, [4] * n, *align)]
    for kind in ("tanh", "relu"):
        samples[f"rnn_{kind}.input"] = [
            call(f(6, 3, 5), f(4, 3, 4), _rnn(1), True, 2, 0.0, False, True, False)
        ]
        samples[f"rnn_{kind}_cell.default"] = [call(f(3, 5), f(3, 4), f(4, 5), f(4, 4), f(4), f(4))]
    samples["gru_cell.default"] = [call(f(3, 5), f(3, 4), f(12, 5), f(12, 4), f(12), f(12))]
    samples["lstm_cell.default"] = [call(f(3, 5), [f(3, 4), f(3, 4)], f(16, 5), f(16, 4), f(16), f(16))]
    for key in ("scatter.src", "scatter_add.default", "scatter_add_.default"):
        samples[key] = [call(x, 1, i(4, 3, 2), f(3, 2))]
    q, k = f(2, 4, 5, 8), f(2, 2, 5, 8)
    samples["scaled_dot_product_attention.default"] += [
        call(q, q, q, None, 0.1, True),
        call(q, k, k, enable_gqa=True),
        call(q, q, q, f(2, 1, 5, 5), 0.0, scale=1.0),
        call(q.transpose(1, 2), q.transpose(1, 2), q.transpose(1, 2)),
    ]
    samples["cross_entropy_loss.default"] += [
        call(f(3, 5), f(3, 5)),
        call(f(2, 5, 3), i(5, 2, 3)),
        call(f(5), i(5)),
    ]
    return samples


def _guess(key: str) -> Call:
    """The call that most rows of a shape take: one tensor, two tensors, a list, a size."""
    names = [parameter.name for parameter in TABLE[key].parameters]
    x = f(3, 4)
    whole = "bitwise" in key or key.startswith(("__", "logical"))
    if key.startswith("int."):
        return call(7, 3)
    if names[0] == "tensors":
        return call([x, f(3, 4)])
    if names[0] == "size":
        return call([2, 3])
    if names[:2] == ["self", "size"]:
        return call(x, [2, 3])
    if names[:2] == ["self", "target"]:
        return call(x, f(3, 4))
    if names[1:2] in (["other"], ["exponent"]):
        scalar = "Scalar" in key
        value = i(9, 3, 4) if whole else x
        return call(value, (2 if whole else 2.5) if scalar else (i(9, 3, 4) if whole else f(3, 4)))
    if names[1:2] == ["p"] and "dropout" in key:
        return call(f(2, 3, 4), 0.3, True)
    if key.startswith(("clamp", "clip")):
        return call(x, 0.2)
    if key == "bitwise_not.default":
        return call(b(3, 4))
    return call(x)


def all_samples() -> Mapping[str, list[Call]]:
    """Fresh calls for each row of the table, by key; values from torch's generator."""
    written = _defaults()
    return {key: written.get(key) or [_guess(key)] for key in TABLE}
