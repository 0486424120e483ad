"""Bodies with their fp32 numbers as int8: what a compressed run sends in place of a partial sum or of weights.

::

    body     | fp32 ············ | fp64, buffers, ... |        training/gradients.py, training/moving.py
    packed   | scales and int8 · | as they are        |        training/quantize.py

Batch statistics, counters, fp64 and half-precision numbers travel as they are. Knows no lease and no network.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manyhands.tensors.memory import allocate, bytes_of
from manyhands.training.gradients import GradientLayout, Partial
from manyhands.training.moving import MovingState
from manyhands.training.quantize import GROUP, Quantizer, encoded_bytes
from manyhands.training.seeds import derive

GROUP_BYTES = 4 * GROUP


class Piece(NamedTuple):
    """Bytes [start, stop) of a body, which are [at, end) of it packed."""

    start: int
    stop: int
    at: int
    end: int
    is_quantized: bool


def pieces_of(runs: Iterable[tuple[int, int, bool]]) -> tuple[Piece, ...]:
    """The pieces of a body's runs (start, stop, whether its fp32 is quantised), neighbours of a kind as one."""
    pieces: list[Piece] = []
    for start, stop, is_quantized in runs:
        last = pieces[-1] if pieces else Piece(0, 0, 0, 0, not is_quantized)
        if last.is_quantized == is_quantized:
            start = pieces.pop().start
            last = pieces[-1] if pieces else Piece(0, 0, 0, 0, not is_quantized)
        size = encoded_bytes((stop - start) // 4) if is_quantized else stop - start
        pieces.append(Piece(start, stop, last.end, last.end + size, is_quantized))
    return tuple(pieces)


class SumPacking:
    """Q and D of partial sums of one layout; one thread at a time."""

    def __init__(self, layout: GradientLayout, run_seed: int) -> None:
        self._seed = run_seed
        self._quantizer = Quantizer()
        self._pieces = pieces_of(
            (region.start, region.stop, region.fold is None and region.dtype == torch.float32)
            for region in layout.regions
        )
        self.num_bytes = self._pieces[-1].end if self._pieces else 0
        self._packed: Tensor = allocate(self.num_bytes)
        self.bytes = bytes_of(self._packed)
        """What was packed last, or is to be unpacked next."""

    def pack(self, partial: Partial, step: int, unit: int) -> None:
        """Q of a unit's sum, into `bytes`."""
        packed, body = self._packed.numpy(), partial.buffer.body
        for piece in self._pieces:
            out = packed[piece.at : piece.end]
            if piece.is_quantized:
                values = body[piece.start : piece.stop].view(torch.float32)
                self._quantizer.encode(values, out, unit_key(self._seed, step, unit))
            else:
                out[:] = body.numpy()[piece.start : piece.stop]

    def unpack(self, body: Tensor) -> None:
        """D of `bytes`, into a partial sum's body."""
        packed = self._packed.numpy()
        for piece in self._pieces:
            data = packed[piece.at : piece.end]
            if piece.is_quantized:
                self._quantizer.decode(data, body[piece.start : piece.stop].view(torch.float32))
            else:
                body.numpy()[piece.start : piece.stop] = data


def unit_key(run_seed: int, step: int, unit: int) -> int:
    """What the noise of a unit's sum is made from."""
    return derive(run_seed, "quantize", step, unit)


class StatePacking:
    """Where the trainable fp32 of a moving state lies in its body, and in a packed change of it."""

    def __init__(self, moving: MovingState) -> None:
        layout, trainable = moving.layout, moving.state.trainable
        ends = [*layout.offsets[1:], layout.num_bytes]
        self.pieces = pieces_of(
            (start, stop, spec.name in trainable and spec.dtype == torch.float32)
            for spec, start, stop in zip(layout.specs, layout.offsets, ends, strict=True)
        )
        self.num_bytes = self.pieces[-1].end

    def apply(self, packed: Tensor, body: Tensor) -> None:
        """On a node: move the weights in `body` by the change that came, and take the rest as it is."""
        quantizer = Quantizer()
        for piece in self.pieces:
            data = packed.numpy()[piece.at : piece.end]
            if piece.is_quantized:
                quantizer.decode(data, body[piece.start : piece.stop].view(torch.float32), add=True)
            else:
                body.numpy()[piece.start : piece.stop] = data


class SentWeights:
    """The weights that every node of a compressed run computes with: the coordinator's, as far as they were told.

    After each step nodes are told the rounded difference to the coordinator's own, and what rounding left behind is
    in the next difference: error feedback, kept here and in checkpoints, and nowhere else.
    """

    def __init__(self, moving: MovingState) -> None:
        self._moving = moving
        self._packing = StatePacking(moving)
        self._quantizer = Quantizer()
        self.body: Tensor = moving.layout.allocate().zero_()
        moving.state.read(moving.layout, self.body)
        self.bytes = bytes_of(self.body)
        self._change: Tensor = allocate(self._packing.num_bytes)
        self.change = bytes_of(self._change)
        """The packed change from the version before."""
        self._done = 0

    def begin(self) -> None:
        """A new version comes, even where no weight has moved: what rounding left behind is told."""
        self._done = 0

    def advance(self, final_bytes: int) -> int:
        """Tell what is final in the first `final_bytes` of the moving body; how much of `change` is final then."""
        packed = 0
        for piece in self._packing.pieces:
            start = max(piece.start, self._done)
            stop = min(piece.stop, final_bytes)
            if stop < piece.stop:  # whole groups only, the rest when more is final
                stop -= (stop - piece.start) % GROUP_BYTES
            if start < stop:
                self._tell(piece, start, stop)
                self._done = stop
            if stop < piece.stop:
                return packed if stop <= piece.start else piece.at + self._place(piece, stop)
            packed = piece.end
        return packed

    def _place(self, piece: Piece, at: int) -> int:
        size = at - piece.start
        return encoded_bytes(size // 4) if piece.is_quantized else size

    def _tell(self, piece: Piece, start: int, stop: int) -> None:
        new, held = self._moving.body[start:stop], self.body[start:stop]
        out = self._change.numpy()[piece.at + self._place(piece, start) : piece.at + self._place(piece, stop)]
        if piece.is_quantized:
            self._quantizer.encode_change(new.view(torch.float32), held.view(torch.float32), out)
        else:
            held.copy_(new)
            out[:] = new.numpy()

    def tensors(self) -> dict[str, Tensor]:
        """By name, as views: what nodes hold."""
        specs = self._moving.layout.specs
        return {
            spec.name: view for spec, view in zip(specs, self._moving.layout.views(self.body), strict=True)
        }

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint: the trainable weights that nodes hold."""
        return {name: view for name, view in self.tensors().items() if name in self._moving.state.trainable}

    def load(self, saved: dict[str, Any]) -> None:
        """Put a checkpoint's back; what is not in it is as the model has it."""
        self._moving.state.read(self._moving.layout, self.body)
        for name, view in self.tensors().items():
            if name in saved:
                view.copy_(saved[name])
