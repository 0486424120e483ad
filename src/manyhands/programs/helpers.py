"""Helpers that look at values: asked once eagerly, their answers baked into the trace.

``nn.TransformerEncoder`` compares a mask with the causal one to pick a kernel; under a tracer tensors have no
values and the question fails. transformers asks whether a mask can be left to the kernel, and says no while
it is traced, which costs bits. The answer is a property of the model, not of the batch, so it is recorded in
an eager run and replayed, in its order, while tracing::

    with asking() as answers: run eagerly          the helpers answer, and are written down
    with baked(answers):      trace                the helpers say again what they said

A model whose answers differ between batches decides by data, and cannot be captured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

Answers = list[tuple[str, Any]]
_Wrap = Callable[["Helper", Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Helper:
    """A function by the module in which its callers look it up, and whether the model decides its answer.

    A call for which `asks` is False is left to the helper itself, while tracing too.
    """

    module: str
    name: str
    asks: Callable[..., bool]


def _always(*_args: Any, **_kwargs: Any) -> bool:
    return True


def _without_padding(padding_mask: Any = None, *_args: Any, **_kwargs: Any) -> bool:
    # With a padding mask the answer is the batch's: no trace may hold that there was nothing to mask.
    return padding_mask is None


HELPERS: Final = (
    Helper("torch.nn.modules.transformer", "_detect_is_causal_mask", _always),
    Helper("transformers.masking_utils", "_ignore_causal_mask_sdpa", _without_padding),
    Helper("transformers.masking_utils", "_ignore_bidirectional_mask_sdpa", _without_padding),
)


@contextmanager
def asking() -> Iterator[Answers]:
    """Write down what the helpers answer meanwhile."""
    answers: Answers = []

    def recording(helper: Helper, original: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*args: Any, **kwargs: Any) -> Any:
            answer = original(*args, **kwargs)
            if helper.asks(*args, **kwargs):
                answers.append((helper.name, answer))
            return answer

        return ask

    with _replaced(recording):
        yield answers


@contextmanager
def baked(answers: Answers) -> Iterator[None]:
    """Let each helper give its answers, in their order, without looking at anything.

    One that is asked more often than in the eager run answers by itself: a model may take another way while it
    is traced, and whether that way is the same is for the proof to say.
    """

    def replaying(helper: Helper, original: Callable[..., Any]) -> Callable[..., Any]:
        left = [value for name, value in reversed(answers) if name == helper.name]

        def answer(*args: Any, **kwargs: Any) -> Any:
            if left and helper.asks(*args, **kwargs):
                return left.pop()
            return original(*args, **kwargs)

        return answer

    with _replaced(replaying):
        yield


@contextmanager
def _replaced(wrap: _Wrap) -> Iterator[None]:
    """Put the wrapped helpers in the place of those whose module somebody has imported."""
    found = [(sys.modules[helper.module], helper) for helper in HELPERS if helper.module in sys.modules]
    originals = [
        (module, helper, getattr(module, helper.name)) for module, helper in found if _has(module, helper)
    ]
    try:
        for module, helper, original in originals:
            setattr(module, helper.name, wrap(helper, original))
        yield
    finally:
        for module, helper, original in originals:
            setattr(module, helper.name, original)


def _has(module: Any, helper: Helper) -> bool:
    # Private names of libraries: another version may lack one, and then nothing of it is asked.
    return hasattr(module, helper.name)
