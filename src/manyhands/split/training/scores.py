"""How well a model does on a dataset, batch by batch: the loss, and accuracies where the targets are classes.

The mean loss is that of the whole dataset as one batch: each batch weighs what its own mean divided by (its samples;
the targets that count, for token losses), so that a last batch of another size changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manyhands.training.objective import IGNORE_INDEX, logits_of

TOP = 5


class Hits(NamedTuple):
    """How many targets of a batch were right, among the five likeliest, and there at all."""

    first: int
    top5: int
    counted: int


@dataclass
class Scores:
    """Sums over batches."""

    is_sum: bool = False
    """Whether the criterion sums, so that the total is not divided."""
    samples: int = 0
    loss_sum: float = 0.0
    weight: float = 0.0
    hits: Hits | None = None
    details: list[dict[str, Any]] = field(default_factory=list)
    keeps_details: bool = False

    def add(self, samples: int, loss: float, weight: float, hits: Hits | None, number: int = 0) -> None:
        """Count batch `number`, whose mean loss divided by `weight`."""
        if self.keeps_details:
            self.details.append(_detail(number, samples, loss, hits))
        first = self.samples == 0
        self.samples += samples
        self.loss_sum += loss * weight
        self.weight += weight
        if hits is None or (self.hits is None and not first):
            self.hits = None
        else:
            self.hits = Hits(*(a + b for a, b in zip(self.hits or Hits(0, 0, 0), hits, strict=True)))

    def sums(self) -> dict[str, Any]:
        """What `together` needs of one trainer's share: plain values, which can travel."""
        hits = list(self.hits) if self.hits is not None else None
        sums = {
            "is_sum": self.is_sum,
            "samples": self.samples,
            "loss_sum": self.loss_sum,
            "weight": self.weight,
        }
        return {**sums, "hits": hits, "details": self.details}

    @classmethod
    def together(cls, shares: Sequence[Mapping[str, Any]]) -> Scores:
        """The scores of the whole dataset, from the `sums` of those who had a share of it."""
        whole = cls(bool(shares[0]["is_sum"]))
        counted = [share for share in shares if share["samples"]]
        for share in counted:
            whole.samples += share["samples"]
            whole.loss_sum += share["loss_sum"]
            whole.weight += share["weight"]
            whole.details += share["details"]
        hits = [share["hits"] for share in counted]
        if hits and None not in hits:
            whole.hits = Hits(*(sum(column) for column in zip(*hits, strict=True)))
        whole.details.sort(key=itemgetter("batch"))
        return whole

    def result(self) -> dict[str, Any]:
        """What ``run_validation`` returns: accuracies only where the targets are classes."""
        result: dict[str, Any] = {
            "total_samples": self.samples,
            "total_batches": len(self.details),
            "average_loss": self.loss,
            "detailed_results": self.details,
        }
        if self.accuracy is not None:
            result |= {"accuracy": self.accuracy, "top5_accuracy": self.top5_accuracy}
        return result

    @property
    def loss(self) -> float:
        """The mean loss so far; 0.0 before anything counted."""
        if self.is_sum:
            return self.loss_sum
        return self.loss_sum / self.weight if self.weight else 0.0

    @property
    def accuracy(self) -> float | None:
        """The share that was right; None for regression."""
        return self.hits.first / self.hits.counted if self.hits and self.hits.counted else None

    @property
    def top5_accuracy(self) -> float | None:
        """The share that was among the five likeliest; None for regression."""
        return self.hits.top5 / self.hits.counted if self.hits and self.hits.counted else None


def _detail(batch: int, samples: int, loss: float, hits: Hits | None) -> dict[str, Any]:
    detail: dict[str, Any] = {"batch": batch, "samples": samples, "loss": loss}
    if hits is not None and hits.counted:
        detail |= {"accuracy": hits.first / hits.counted, "top5_accuracy": hits.top5 / hits.counted}
    return detail


def hits_of(output: Any, targets: Tensor, ignore_index: int = IGNORE_INDEX) -> Hits | None:
    """The hits of a batch; None where it is no classification.

    One it is when ``(B, C)`` scores, or ``(B, T, C)`` for tokens, meet whole numbers ``(B,)``, or ``(B, T)``. Of fewer
    than five classes, all are among the likeliest.
    """
    if targets.is_floating_point() or targets.is_complex() or targets.dtype is torch.bool:
        return None
    try:
        scores = logits_of(output)
    except ValueError:
        return None
    if scores.ndim not in (2, 3) or scores.shape[:-1] != targets.shape or scores.shape[-1] < 2:
        return None
    if not scores.is_floating_point():
        return None
    scores, wanted = scores.flatten(0, -2), targets.flatten()
    counts = wanted != ignore_index
    top = scores.topk(min(TOP, scores.shape[1]), dim=1).indices == wanted.unsqueeze(1)
    # The likeliest is argmax's, as in a loop of one's own: topk may order equal scores otherwise.
    first = (scores.argmax(1) == wanted) & counts
    sums = torch.stack([first.sum(), (top.any(1) & counts).sum(), counts.sum()]).tolist()
    return Hits(*sums)
