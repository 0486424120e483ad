"""int8 for fp32 values, the same bits on every machine: Q and D of a compressed run.

::

    values   | block of 128 | block of 128 | ...                        fp32
    encoded  | scales of a group, fp32 | its values, int8 | next group  0.258 of the bytes

    Q   q = floor(x / scale + noise),  scale = max|block| / 126.5,  noise in [0, 1)
    D   x' = q * scale

With a key the noise is an integer hash of (key, place), so that Q has no state, no bias (QSGD: Alistarh et al. 2017),
and one result whoever computes it; without one it is 1/2, which rounds to the nearest. Only correctly rounded IEEE
operations are used, one at a time, so neither thread count nor instruction set shows. Scales are fp32: bf16 ones
would save 0.4 % of the bytes and cost up to 0.4 % of each value.

A group is what fits a second-level cache together with its scratch; each pass over it is one vectorised call.
Knows no gradient, step or network.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BLOCK = 128
"""Values that share a scale."""
GROUP = 1 << 15
"""Values worked on at a time, and laid out together: a group is final before the next is looked at."""
LEVELS = np.float32(126.5)
"""The largest |x / scale|: half a level under 127, so that noise lifts no value out of int8 and nothing is clipped."""
SMALLEST = np.float32(1e-36)
"""A block below it is zero: its scale would be subnormal, and machines that flush those would disagree."""

_SHIFT = np.float32(128.0)
_TURNS, _TURN = 1 << 9, 1 << 4
"""Groups share one table of noise, each from another place: one of so many, so many values apart."""
_NAN = np.float32("nan")

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def encoded_bytes(num_values: int) -> int:
    """Bytes of `num_values` encoded: one each, and four for every block begun."""
    return num_values + 4 * -(-num_values // BLOCK)


def num_units(micro_batches: int) -> int:
    """How many fixed subtrees of a step are rounded each for itself: a power of two.

    As many as nodes are expected, of whom each computes four micro-batches or more: two at least where there are two
    leaves, eight at most. With more nodes some work inside a unit and send fp32; with fewer, a node sends several
    units, and eight of them to two nodes are as many bytes as fp32.
    """
    expected = min(max(2, -(-micro_batches // 4)), 8)
    return 1 << min((expected - 1).bit_length(), micro_batches.bit_length() - 1)


def round_trip(values: Tensor, key: int | None) -> Tensor:
    """D(Q(values)): a new fp32 tensor of the same 1-d shape."""
    quantizer = Quantizer()
    data: Bytes = torch.empty(encoded_bytes(values.numel()), dtype=torch.uint8).numpy()
    out = torch.empty_like(values)
    quantizer.encode(values, data, key)
    quantizer.decode(data, out)
    return out


class Quantizer:
    """Q and D over flat fp32 CPU tensors, with scratch memory of its own: one thread at a time.

    A block with an infinity or a NaN comes back as NaN throughout, and a value within 0.4 % of fp32's largest may come
    back infinite: both are for the caller to refuse. Encoded data is
    ``uint8 (encoded_bytes(n),)``; any such bytes decode to something.
    """

    def __init__(self) -> None:
        # Memory of torch's: it begins at a cache line, which numpy's does not, and that is half of the time here.
        self._flat = torch.zeros(GROUP)
        self._work: Floats = self._flat.numpy()
        self._blocks = self._flat.view(-1, BLOCK)
        self._change = torch.zeros(GROUP)
        self._table: Floats = torch.empty(GROUP + _TURNS * _TURN).numpy()

    def encode(self, values: Tensor, out: Bytes, key: int | None) -> None:
        """Q of contiguous `values` (fp32, 1-d) into `out`; the noise of `key`, or the nearest where it is None."""
        count = values.numel()
        with torch.no_grad():
            for number, start in enumerate(range(0, count, GROUP)):
                stop = min(start + GROUP, count)
                noise = self._noise(key, number, count)
                self._encode_group(values[start:stop], out[encoded_bytes(start) : encoded_bytes(stop)], noise)

    def decode(self, data: Bytes, out: Tensor, *, add: bool = False) -> None:
        """D of `data` into `out` (fp32, 1-d, contiguous), or added to what is there."""
        count = out.numel()
        with torch.no_grad():
            for start in range(0, count, GROUP):
                stop = min(start + GROUP, count)
                place = slice(encoded_bytes(start), encoded_bytes(stop))
                if add:
                    self._add_group(data[place], out[start:stop])
                else:
                    self._decode_group(data[place], out[start:stop])

    def encode_change(self, new: Tensor, held: Tensor, out: Bytes) -> None:
        """Q(new - held) to the nearest, into `out`, and `held` moved by what a peer will decode of it.

        So what rounding left behind stays in ``new - held``, and goes with the next change (error feedback: Seide
        et al. 2014). All contiguous fp32, 1-d, of one size, and begun at a multiple of ``GROUP`` values.
        """
        count = new.numel()
        with torch.no_grad():
            for start in range(0, count, GROUP):
                stop = min(start + GROUP, count)
                part = out[encoded_bytes(start) : encoded_bytes(stop)]
                difference = torch.sub(new[start:stop], held[start:stop], out=self._change[: stop - start])
                self._encode_group(difference, part, np.float32(128.5))
                self._add_group(part, held[start:stop])

    # ---- one group ----

    def _encode_group(self, values: Tensor, out: Bytes, noise: Floats | np.float32) -> None:
        count = values.numel()
        num_blocks = -(-count // BLOCK)
        work, blocks = self._work[:count], self._blocks[:num_blocks]
        if count % BLOCK:
            self._work[count : num_blocks * BLOCK] = 0.0
        torch.abs(values, out=self._flat[:count])
        largest = torch.amax(blocks, dim=1).numpy()
        is_plain = largest.min() >= SMALLEST and largest.max() < np.inf
        scales, reciprocals = (largest / LEVELS, LEVELS / largest) if is_plain else _odd_scales(largest)
        factors = torch.from_numpy(reciprocals)[:, None]
        if count % BLOCK:
            work[:] = values.numpy()
            blocks.mul_(factors)
        else:
            torch.mul(values.view(-1, BLOCK), factors, out=blocks)
        if not is_plain:
            blocks[torch.from_numpy(np.isnan(scales))] = 0.0  # 0 * inf is a NaN, which has no integer
        np.add(work, noise, out=work)
        out[: 4 * num_blocks].view(np.float32)[:] = scales
        values_out = out[4 * num_blocks :]
        # All are in [1, 256) now, where cutting the fraction off is rounding down.
        np.copyto(values_out, work, casting="unsafe")
        np.bitwise_xor(values_out, 0x80, out=values_out)

    def _decode_group(self, data: Bytes, out: Tensor) -> None:
        count = out.numel()
        num_blocks = -(-count // BLOCK)
        scales = torch.from_numpy(data[: 4 * num_blocks].view(np.float32))
        values = torch.from_numpy(data[4 * num_blocks :].view(np.int8))
        out.copy_(values)  # a product of int8 and fp32 in one call takes a quarter longer
        whole = count - count % BLOCK
        if whole:
            out[:whole].view(-1, BLOCK).mul_(scales[: whole // BLOCK, None])
        if whole < count:
            out[whole:].mul_(scales[-1])

    def _add_group(self, data: Bytes, out: Tensor) -> None:
        decoded = self._flat[: out.numel()]
        self._decode_group(data, decoded)
        out.add_(decoded)

    # ---- noise ----

    def _noise(self, key: int | None, number: int, count: int) -> Floats | np.float32:
        """128 and the noise of group `number`, ``float32 (its values,)``."""
        if key is None:
            return _SHIFT + np.float32(0.5)
        size = min(GROUP, count - number * GROUP)
        turn = int(_hash(key ^ (1 << 62), number, number + 1)[0]) % _TURNS * _TURN
        if count <= GROUP:
            return _noise_table(key, turn, turn + size)
        if number == 0:
            self._table[:] = _noise_table(key, 0, len(self._table))
        return self._table[turn : turn + size]


def _odd_scales(largest: Floats) -> tuple[Floats, Floats]:
    """Scales and their reciprocals where a block is zero (0, 0) or not finite (NaN, 0)."""
    is_finite = np.isfinite(largest)
    is_used = is_finite & (largest >= SMALLEST)
    divisor = np.where(is_used, largest, np.float32(1.0))
    scales = np.where(is_used, divisor / LEVELS, np.where(is_finite, np.float32(0.0), _NAN))
    return scales, np.where(is_used, LEVELS / divisor, np.float32(0.0))


def _noise_table(key: int, start: int, stop: int) -> Floats:
    """128 + k / 65536, exact in fp32, with k from the upper half of the hash."""
    table = (_hash(key, start, stop) >> np.uint32(16)).astype(np.float32)
    table *= np.float32(2.0**-16)
    table += _SHIFT
    return table


def _hash(key: int, start: int, stop: int) -> npt.NDArray[np.uint32]:
    """Two rounds of lowbias32 (C. Wellons, hash-prospector) over the places, a half of `key` into each."""
    x = np.arange(start, stop, dtype=np.uint32)
    scratch = np.empty_like(x)
    for word in (key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF):
        x ^= np.uint32(word)
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, None)):
            np.right_shift(x, np.uint32(shift), out=scratch)
            x ^= scratch
            if factor is not None:
                x *= np.uint32(factor)
    return x
