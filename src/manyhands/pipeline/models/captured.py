"""A user's own class in a layer list: run, captured as a program, proven, and forgotten.

One instance at a time exists here. Its first weights are made again from the same random state when they are
sent, so that a list of large layers never stands whole on one machine.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from manyhands.errors import CaptureFailed, UsageError
from manyhands.pipeline.models.drafts import Draft, cannot_take, first_line
from manyhands.pipeline.models.entries import Entry
from manyhands.pipeline.models.shapes import Flow
from manyhands.pipeline.recipes.format import ProgramPart, Recipe
from manyhands.programs.capture import capture
from manyhands.programs.format import encode
from manyhands.programs.proof import prove_layer
from manyhands.programs.tracing import WAY_OUT
from manyhands.programs.undisturbed import undisturbed

_NAMES: Final = ("in_variables", "dependencies", "out_variables")
_ADVICE: Final = (
    "rewrite that line with torch operators, or make the layer of several of torch.nn in the list"
)


def capture_layer(entry: Entry, inputs: Sequence[Flow]) -> Draft:
    """The draft of a class that is not torch's. UsageError names the line that cannot travel."""
    state = torch.get_rng_state()
    layer = _Named(entry, _instance(entry))
    batches = _batches(inputs)
    try:
        outputs, names = _outputs(layer, inputs, batches)
        captured = capture(layer, None, batches)
        prove_layer(captured, layer, batches)
    except CaptureFailed as error:
        raise UsageError(f"{entry} cannot travel as data: {_reason(error)}") from error
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{entry} {cannot_take(inputs)}: {first_line(error)}") from error
    number = len(inputs)
    results = len(names)
    part = ProgramPart(encode(captured.program), tuple(range(number)), results)
    recipe = Recipe(number, (part,), tuple(range(number, number + results)))

    def weights() -> Mapping[str, Tensor]:
        with torch.random.fork_rng([]):
            torch.set_rng_state(state)
            again = _Named(entry, _instance(entry))
        return {**dict(again.named_parameters()), **dict(again.named_buffers())}

    return Draft(recipe, outputs, names, weights)


class _Named(nn.Module):
    """The user's layer with its outputs flat, the main one first; a tensor under two names is one output.

    Its parameters are named as in the whole list: ``3.weight``.
    """

    def __init__(self, entry: Entry, layer: nn.Module) -> None:
        super().__init__()
        self.add_module(str(entry.index), layer)
        self._entry = entry
        self.names: tuple[tuple[str, ...], ...] = ()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        made = self._modules[str(self._entry.index)](*inputs)  # type: ignore[misc]
        out, published = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
        named: dict[str, Any] = dict(published)
        missing = [name for name in self._entry.produced if not isinstance(named.get(name), Tensor)]
        if not isinstance(out, Tensor) or missing:
            raise UsageError(
                f"{self._entry} must return out, (out, {{name: tensor}}) or (out, [(name, tensor)]) with a tensor for "
                f"each of its out_variables {list(self._entry.produced)}"
                + (f"; {missing[0]!r} is missing" if missing else "")
            )
        tensors = [out]
        names: list[tuple[str, ...]] = [()]
        for name in self._entry.produced:
            at = next((at for at, one in enumerate(tensors) if one is named[name]), len(tensors))
            if at == len(tensors):
                tensors.append(named[name])
                names.append(())
            names[at] = (*names[at], name)
        self.names = tuple(names)
        return tuple(tensors)


def _instance(entry: Entry) -> nn.Module:
    taken = inspect.signature(entry.cls).parameters
    is_open = entry.cls.__init__ is not nn.Module.__init__ and any(
        one.kind is one.VAR_KEYWORD for one in taken.values()
    )
    kwargs = {
        name: value for name, value in entry.kwargs.items() if name not in _NAMES or name in taken or is_open
    }
    try:
        return entry.cls(**kwargs)
    except Exception as error:
        raise UsageError(f"{entry} cannot be built with {kwargs!r:.120}: {first_line(error)}") from error


def _batches(inputs: Sequence[Flow]) -> list[tuple[Tensor, ...]]:
    """A batch of each size, of random numbers; whole numbers are 0, masks all true."""
    generator = torch.Generator().manual_seed(0)

    def filled(like: Tensor) -> Tensor:
        if like.dtype.is_floating_point:
            return torch.randn(like.shape, generator=generator).to(like.dtype)
        return (
            torch.ones(like.shape, dtype=like.dtype)
            if like.dtype == torch.bool
            else torch.zeros(like.shape, dtype=like.dtype)
        )

    return [tuple(filled(getattr(one, side)) for one in inputs) for side in ("low", "high")]


def _outputs(
    layer: _Named, inputs: Sequence[Flow], batches: Sequence[tuple[Tensor, ...]]
) -> tuple[list[Flow], tuple[tuple[str, ...], ...]]:
    """What flows out of `layer` and under which names, by its own run over each batch."""

    def ran(batch: tuple[Tensor, ...]) -> list[Tensor]:
        leaves = [
            leaf.clone().requires_grad_(flow.has_gradient) for leaf, flow in zip(batch, inputs, strict=True)
        ]
        made = layer(*leaves)
        return [torch.empty_like(one, device="meta", requires_grad=one.requires_grad) for one in made]

    with undisturbed(layer):
        low, high = map(ran, batches)
        names = layer.names
    return [Flow(*pair) for pair in zip(low, high, strict=True)], names


def _reason(error: CaptureFailed) -> str:
    return f"{str(error).partition(WAY_OUT)[0].rstrip(' ,:')}; {_ADVICE}"
