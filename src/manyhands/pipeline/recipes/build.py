"""A recipe made into a module: tensors in, a tuple of tensors out, parameters under the model's own names.

Everything is checked on the meta device first, so that nothing is allocated for a layer that is too large or
cannot be. Knows nothing of stages, micro-batches or where the recipe came from.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from manyhands.errors import ProgramRefused
from manyhands.pipeline.recipes import catalogue
from manyhands.pipeline.recipes.format import Argument, ProgramPart, Recipe, TorchPart, Value
from manyhands.programs.format import MAX_NODES
from manyhands.programs.layers import ProgramLayer
from manyhands.programs.parser import parse
from manyhands.programs.plan import Limits
from manyhands.tensors.dtypes import DTYPES

UNLIMITED: Final = Limits(bytes=1 << 60, flops=1 << 62, nodes=MAX_NODES)
"""For one's own model: it takes as much as it takes."""


def tensors_of(made: Any) -> list[Tensor]:
    """The tensors of what a layer returned, in order: a tensor, or tuples, lists and dicts of them and of None."""
    if isinstance(made, Tensor):
        return [made]
    if isinstance(made, Mapping):
        made = tuple(made.values())
    return [one for item in made for one in tensors_of(item)] if isinstance(made, tuple | list) else []


@dataclass(frozen=True)
class _Call:
    """One part bound to the values it takes."""

    module: nn.Module
    args: tuple[Argument, ...]
    keywords: tuple[tuple[str, Argument], ...]
    results: int

    def add_to(self, values: list[Tensor]) -> None:
        """Run it over `values`, and append its results."""
        args = [values[one.index] if isinstance(one, Value) else one for one in self.args]
        keywords = {name: values[one.index] if isinstance(one, Value) else one for name, one in self.keywords}
        made = self.module(*args, **keywords)
        tensors = tensors_of(made)
        if len(tensors) != self.results:
            raise ProgramRefused(
                f"a part of a layer gives {len(tensors)} tensors, and {self.results} were announced"
            )
        values.extend(tensors)


class BuiltLayer(nn.Module):
    """A layer of the model as its worker runs it: ``forward(*inputs) -> (output, ...)``.

    Inputs and outputs are those of the graph's :class:`~manyhands.pipeline.graph.Layer`, in its order.
    ``named_parameters`` and ``named_buffers`` give the names that the whole model has them under. ``train()``
    and ``eval()`` act on all parts; random numbers come from torch's default generator.
    """

    def __init__(self, recipe: Recipe, modules: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self._paths = tuple(part.path if isinstance(part, TorchPart) else "" for part in recipe.parts)
        self._calls = tuple(_bound(part, module) for part, module in zip(recipe.parts, modules, strict=True))
        self._outputs = recipe.outputs
        self._only: Callable[..., Any] | None = modules[0] if _is_plain(recipe) else None

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """One tensor for each output; where a part changes a buffer, it is changed in place."""
        if self._only is not None:
            return (self._only(*inputs),)
        values = list(inputs)
        for call in self._calls:
            call.add_to(values)
        return tuple([values[index] for index in self._outputs])

    @property
    def only(self) -> Callable[..., Any] | None:
        """The one torch layer that it is, over its inputs in order: for who saves the way through this module."""
        return self._only

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by the model's own names, each once."""
        yield from self._named(nn.Module.named_parameters, prefix, remove_duplicate)

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Buffers by the model's own names, each once."""
        yield from self._named(nn.Module.named_buffers, prefix, remove_duplicate)

    def _named(self, of: Any, prefix: str, remove_duplicate: bool) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for path, part in zip(self._paths, self.parts, strict=True):
            whole = ".".join(filter(None, (prefix, path)))
            for name, tensor in of(part, prefix=whole, remove_duplicate=remove_duplicate):
                if id(tensor) not in seen or not remove_duplicate:
                    seen.add(id(tensor))
                    yield name, tensor


def build(recipe: Recipe, limits: Limits = UNLIMITED) -> BuiltLayer:
    """The layer that `recipe` describes, on the current default device, in train mode.

    Torch layers start as torch starts them, from the default generator: seed it first. Tensors of programs are
    zero until they are loaded. Under ``torch.device("meta")`` nothing is allocated. ProgramRefused where an
    option, a name or a program is not allowed, or the tensors take more than ``limits.bytes``.
    """
    with torch.device("meta"):
        needed = sum(
            tensor.numel() * tensor.element_size()
            for module in _modules(recipe, limits)
            for tensor in (*module.parameters(), *module.buffers())
        )
    if needed > limits.bytes:
        raise ProgramRefused(
            f"a layer's tensors take {needed:,} bytes, and this machine lends {limits.bytes:,}"
        )
    return BuiltLayer(recipe, _modules(recipe, limits))


def _modules(recipe: Recipe, limits: Limits) -> list[nn.Module]:
    modules: list[nn.Module | None] = [None] * len(recipe.parts)
    known: dict[str, Tensor] = {}
    for at, part in enumerate(recipe.parts):
        if isinstance(part, TorchPart):
            modules[at] = made = _torch_layer(part)
            known |= {f"{part.path}.{name}": parameter for name, parameter in made.named_parameters()}
    # After the layers: a program that uses a layer's own weight shares it.
    for at, part in enumerate(recipe.parts):
        if isinstance(part, ProgramPart):
            modules[at] = made = _program_layer(part, known, limits)
            known |= dict(made.named_parameters())
    return [module for module in modules if module is not None]


def _torch_layer(part: TorchPart) -> nn.Module:
    cls = catalogue.layer_class(part.kind)
    options = catalogue.arguments(cls, part.options)
    allowed = inspect.signature(cls.forward).parameters
    if unknown := [keyword.name for keyword in part.keywords if keyword.name not in allowed]:
        raise ProgramRefused(f"forward of {part.kind} takes no argument {unknown[0]!r}")
    try:
        module = cls(**options)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Whatever a constructor of torch's says of numbers it does not take.
        raise ProgramRefused(f"{part.kind} cannot be built: {str(error)[:200]}") from None
    weights = dict(module.named_parameters())
    for name in part.frozen:
        if name not in weights:
            raise ProgramRefused(f"{part.kind} has no parameter {name[:60]!r} to freeze")
        weights[name].requires_grad_(False)
    return module


def _program_layer(part: ProgramPart, known: dict[str, Tensor], limits: Limits) -> ProgramLayer:
    program = parse(part.program, has_loss=False)
    rows = (*program.parameters, *program.buffers)
    needed = sum(DTYPES[row.dtype].itemsize * _count(row.shape) for row in rows)
    if needed > limits.bytes:
        raise ProgramRefused(
            f"a program's tensors take {needed:,} bytes, and this machine lends {limits.bytes:,}"
        )
    tensors = {
        row.name: known[row.name] if row.name in known else torch.zeros(row.shape, dtype=DTYPES[row.dtype])
        for row in rows
    }
    return ProgramLayer(program, tensors, limits=limits)


def _count(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _bound(part: TorchPart | ProgramPart, module: nn.Module) -> _Call:
    if isinstance(part, ProgramPart):
        return _Call(module, tuple(Value(index) for index in part.args), (), part.results)
    return _Call(module, part.args, tuple((one.name, one.value) for one in part.keywords), part.results)


def _is_plain(recipe: Recipe) -> bool:
    """Whether the layer is one torch layer over all inputs in order, which gives its only output."""
    part = recipe.parts[0]
    return (
        len(recipe.parts) == 1
        and isinstance(part, TorchPart)
        and part.args == tuple(Value(index) for index in range(recipe.num_inputs))
        and not part.keywords
        and part.results == 1
        and recipe.outputs == (recipe.num_inputs,)
        and part.kind not in _NESTED
    )


_NESTED: Final = frozenset({"RNN", "LSTM", "GRU", "MultiheadAttention"})
"""Layers that return tuples, whatever the number of tensors in them."""
