"""The usual losses. Class numbers out of range are the kernels' own to refuse: each raises IndexError."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from manyhands.programs.operators import infer, require
from manyhands.programs.operators.row import Arguments, Check, Row, row, rows


def _classes(*ranks: int, probabilities: bool = False) -> Check:
    """Scores ``([N,] C, …)``; targets are class numbers ``([N,] …)``, or probabilities of the scores' shape."""

    def check(a: Arguments) -> str | None:
        scores, target = a["self"], a["target"]
        if scores.dim() < 1 or (ranks and scores.dim() not in ranks):
            return f"scores have {scores.dim()} dimensions"
        if probabilities and target.shape == scores.shape and not require.is_integral(target.dtype):
            return _rest(a, scores)
        places = (*scores.shape[:1], *scores.shape[2:]) if scores.dim() > 1 else ()
        if tuple(target.shape) != tuple(places) and not (scores.dim() == 1 and target.shape == (1,)):
            return f"targets {tuple(target.shape)} for scores {tuple(scores.shape)}"
        if target.dtype not in (torch.int64, torch.uint8):
            return f"class numbers are {target.dtype}, not int64"
        return _rest(a, scores)

    return check


def _rest(a: Arguments, scores: Tensor) -> str | None:
    classes = scores.shape[1] if scores.dim() > 1 else scores.shape[0]
    weight = a["weight"]
    if not require.vector(weight, classes) or (weight is not None and weight.dtype != scores.dtype):
        return f"class weights are not a vector of {classes} of {scores.dtype}"
    if not 0.0 <= a.get("label_smoothing", 0.0) <= 1.0:
        return f"label_smoothing is {a['label_smoothing']}"
    return "the scores are not floating" if require.is_integral(scores.dtype) else require.reduction(a)


def _margins(a: Arguments) -> str | None:
    """Targets and weights as long as the scores say; p is 1 or 2."""
    scores, target = a["self"], a["target"]
    if scores.dim() not in (1, 2) or target.dtype != torch.int64 or scores.numel() == 0:
        return f"scores {tuple(scores.shape)} with targets of {target.dtype}"
    if target.numel() != (scores.shape[0] if scores.dim() == 2 else 1) or target.dim() > 1:
        return f"targets {tuple(target.shape)} for scores {tuple(scores.shape)}"
    if not require.vector(a["weight"], scores.shape[-1]) or a["p"] not in (1, 2):
        return "class weights of another length, or p is not 1 or 2"
    return require.floating("self", "weight")(a) or require.reduction(a)


def _same_shape(a: Arguments) -> str | None:
    """Probabilities, targets and weights of one shape: the kernel runs over them side by side."""
    others = [a["target"]] if a["weight"] is None else [a["target"], a["weight"]]
    if any(other.shape != a["self"].shape for other in others):
        return f"shapes {[tuple(other.shape) for other in others]} for {tuple(a['self'].shape)}"
    return require.floating("self", "target", "weight")(a)


def _of(shape: Callable[[Arguments], Sequence[int]]) -> infer.Infer:
    """A loss of `shape` where it is not reduced, else a scalar; of the first operand's dtype."""

    def result(a: Arguments) -> Tensor:
        first: Tensor = next(value for value in a.values() if isinstance(value, Tensor))
        full = shape(a)
        return infer.blank(() if a["reduction"] else full, infer.floated(first.dtype))

    return result


def _broadcast(*names: str) -> infer.Infer:
    """Operands broadcast and promoted, then reduced."""
    pair = infer.elementwise(*names, gives=infer.floated)

    def result(a: Arguments) -> Tensor:
        made: Tensor = pair(a)
        return infer.blank((), made.dtype) if a["reduction"] else made

    return result


def _per_target(a: Arguments) -> Sequence[int]:
    """One loss a class number; for probabilities, one a row of them."""
    scores, target = a["self"], a["target"]
    if target.shape == scores.shape and target.dtype.is_floating_point:
        return tuple(target.shape[:1] + target.shape[2:]) if target.dim() > 1 else ()
    return tuple(target.shape)


def _judged(a: Arguments) -> Tensor:
    """As the scores, or promoted with probabilities that are finer."""
    scores, target = a["self"], a["target"]
    dtype = infer.promoted(scores, target) if target.dtype.is_floating_point else scores.dtype
    return infer.blank(() if a["reduction"] or scores.dim() == 1 else _per_target(a), dtype)


def _per_row(a: Arguments) -> Sequence[int]:
    return tuple(a["target"].shape)


def _own_shape(a: Arguments) -> Sequence[int]:
    own: Tensor = a["self"]
    return own.shape


def _cosine(a: Arguments) -> Tensor:
    one = a["input1"]
    if (
        one.dim() not in (1, 2)
        or one.shape != a["input2"].shape
        or tuple(a["target"].shape) != tuple(one.shape[:-1])
    ):
        raise ValueError(
            f"inputs {tuple(one.shape)}, {tuple(a['input2'].shape)}, targets {tuple(a['target'].shape)}"
        )
    dtype = infer.floated(infer.promoted(one, a["input2"]))
    return infer.blank(() if a["reduction"] else a["target"].shape, dtype)


def _triplet(a: Arguments) -> Tensor:
    three = [a[name] for name in ("anchor", "positive", "negative")]
    shape = infer.broadcast(*(tensor.shape for tensor in three))
    full = infer.reduced(shape, -1, False) if shape else ()
    return infer.blank(() if a["reduction"] else full, infer.floated(infer.promoted(*three)))


def _both(a: Arguments) -> Sequence[int]:
    return infer.broadcast(a["self"].shape, a["target"].shape)


def _with_weights(a: Arguments) -> Tensor:
    """Scores against targets of their shape; weights stretch to it."""
    own, others = a["self"], [a[name] for name in ("target", "weight", "pos_weight") if a[name] is not None]
    if any(infer.broadcast(own.shape, other.shape) != list(own.shape) for other in others):
        raise ValueError(f"{[tuple(other.shape) for other in others]} for scores {tuple(own.shape)}")
    # The kernel begins with 1 - target and goes on in place.
    return infer.blank(() if a["reduction"] else own.shape, infer.floated(a["target"].dtype))


_ANGLES: Final = (require.floating("input1"), require.floating("input2"))
_TWO: Final = _broadcast("self", "target")

ROWS: Final[tuple[Row, ...]] = (
    row("cross_entropy_loss.default", _classes(probabilities=True), infer=_judged),
    row("nll_loss.default", _classes(1, 2), infer=_of(_per_target)),
    row("nll_loss2d.default", _classes(4), infer=_of(_per_target)),
    row("nll_loss_nd.default", _classes(), infer=_of(_per_target)),
    *rows(
        "mse_loss l1_loss smooth_l1_loss soft_margin_loss kl_div",
        require.reduction,
        infer=_TWO,
    ),
    *rows("huber_loss hinge_embedding_loss", require.floating("self"), require.reduction, infer=_of(_both)),
    row(
        "poisson_nll_loss.default",
        require.floating("input"),
        require.reduction,
        infer=_broadcast("input", "target"),
    ),
    row("margin_ranking_loss.default", require.reduction, infer=_broadcast("input1", "input2", "target")),
    row("cosine_embedding_loss.default", *_ANGLES, require.reduction, infer=_cosine),
    row("triplet_margin_loss.default", require.reduction, infer=_triplet),
    row("binary_cross_entropy_with_logits.default", require.reduction, infer=_with_weights),
    row("binary_cross_entropy.default", _same_shape, require.reduction, infer=_of(_own_shape)),
    row("multi_margin_loss.default", _margins, infer=_of(_per_row)),
)
