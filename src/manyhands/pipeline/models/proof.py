"""The proof that a reading is the module: both run on a few samples from the same random state, bit by bit.

What a trace silently gets wrong (Python state, random numbers of numpy, a value changed in place behind a view) shows
here, before a worker has anything. Layers are built one after the other, so the model is never here twice.
"""

from __future__ import annotations

import random
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from manyhands.errors import UsageError
from manyhands.pipeline.graph import MAIN_INPUT
from manyhands.pipeline.models.reading import Example, Reading
from manyhands.pipeline.recipes.build import BuiltLayer, build
from manyhands.programs.undisturbed import mode, undisturbed

NUM_SAMPLES: Final = 2


def prove(module: nn.Module, reading: Reading, example: Example) -> None:
    """Run `reading` beside `module`, which is as before afterwards; without a live weight there is nothing to run.

    UsageError where the predictions differ in any bit, in train or eval mode.
    """
    tensors = [*module.parameters(), *module.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        return
    device = tensors[0].device if tensors else example.x.device
    inputs = {
        name: (tensor[:NUM_SAMPLES] if reading.graph.edge(name).batched else tensor).to(device)
        for name, tensor in {MAIN_INPUT: example.x, **example.extra}.items()
    }
    extra = {name: tensor for name, tensor in inputs.items() if name != MAIN_INPUT}
    for training in (True, False):
        with undisturbed(module), mode(training, module), torch.no_grad():
            # Other random numbers than the trace saw, or what it made of them would look right.
            np.random.seed(1)
            random.seed(1)
            torch.manual_seed(0)
            wanted = module(inputs[MAIN_INPUT].clone(), **extra)
            torch.manual_seed(0)
            found = _prediction(reading, inputs, training, device)
        if wanted.dtype != found.dtype or not torch.equal(wanted.nan_to_num(), found.nan_to_num()):
            raise UsageError(
                f"the layers do not compute what {type(module).__name__} does in {'train' if training else 'eval'} "
                f"mode (by up to {_difference(wanted, found)}): forward does something that a trace cannot see (Python "
                "state, random numbers of numpy or random, a value changed in place behind a view). Remove it, or give "
                "the model as a layer list"
            )


def _prediction(reading: Reading, inputs: dict[str, Tensor], training: bool, device: torch.device) -> Tensor:
    values = dict(inputs)
    for layer in reading.graph.layers:
        built = _loaded(reading, layer.index, device).train(training)
        made = built(*(values[name] for name in layer.inputs))
        values |= dict(zip(layer.outputs, made, strict=True))
    return values[reading.graph.prediction]


def _loaded(reading: Reading, index: int, device: torch.device) -> BuiltLayer:
    with (
        torch.random.fork_rng([]),
        device,
    ):  # torch's first weights would draw from what dropout is to draw from
        layer = build(reading.recipes[index])
    weights = reading.weights_of(index)
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        tensor.copy_(weights[name])
    return layer


def _difference(one: Tensor, other: Tensor) -> str:
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"{one.dtype} {tuple(one.shape)} against {other.dtype} {tuple(other.shape)}"
    return f"{float((one.double() - other.double()).abs().max()):.3g}"
