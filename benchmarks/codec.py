"""What frames and envelopes cost, beside a plain copy of the same bytes in the same run.

Each line is a JSON object. The two sides take turns and their medians are compared, so that a machine that
slows down slows both. Run: ``python benchmarks/codec.py [--repeats N]``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from manyhands.tensors import allocate, decode, encode
from manyhands.wire.envelope import pack, unpack
from manyhands.wire.transfer import Incoming, chunks

TENSOR_BYTES = 4 << 20


def medians(repeats: int, *sides: Callable[[], object]) -> list[float]:
    """Median seconds of each side, run in turns after one warm-up."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats + 1):
        for at, side in enumerate(sides):
            start = time.perf_counter()
            side()
            if turn:
                seconds[at].append(time.perf_counter() - start)
    return [statistics.median(each) for each in seconds]


def report(name: str, ours: float, theirs: float, unit: str, higher_is_better: bool, setup: str) -> None:
    figures = {"ours": round(ours, 3), "theirs": round(theirs, 3), "ratio": round(ours / theirs, 3)}
    about = {"unit": unit, "higher_is_better": higher_is_better, "setup": setup}
    print(json.dumps({"name": name, **figures, **about}))


def frames(repeats: int) -> None:
    tensor = torch.randn(TENSOR_BYTES // 4)
    source = tensor.numpy().view(np.uint8)
    data = encode(tensor).to_bytes()
    room = allocate(len(data))
    room.numpy()[:] = np.frombuffer(data, np.uint8)

    def through_bytes() -> None:
        decode(encode(tensor).to_bytes())

    def in_place() -> None:
        encode(tensor).parts()
        decode(room)

    there, back = np.empty_like(source), allocate(TENSOR_BYTES).numpy()

    def copy_pair() -> None:
        there[:] = source
        back[:] = there

    by_bytes, placed, copied = (
        TENSOR_BYTES / seconds / 1e9 for seconds in medians(repeats, through_bytes, in_place, copy_pair)
    )
    setup = (
        "4 MiB float32, encode + decode, crc32 both ways, 1 thread; theirs: two copies between warm buffers"
    )
    report("frame_through_bytes", by_bytes, copied, "GB/s", True, setup + "; ours into fresh memory")
    report("frame_in_place", placed, copied, "GB/s", True, setup + "; ours copies on neither side")


def transfers(repeats: int) -> None:
    body = np.random.default_rng(0).integers(0, 256, TENSOR_BYTES, np.uint8)

    def through_messages() -> None:
        incoming = Incoming(max_open=1, max_open_bytes=TENSOR_BYTES)
        incoming.announce(1, TENSOR_BYTES)
        for offset, part in chunks(body.data):
            message = unpack(pack(transfer=1, offset=offset, payload=part))
            whole = incoming.feed(1, message.offset, message.payload)
        assert whole is not None
        whole.to_tensor()

    there, back = np.empty_like(body), allocate(TENSOR_BYTES).numpy()

    def copy_pair() -> None:
        there[:] = body
        back[:] = there

    ours, theirs = (TENSOR_BYTES / seconds / 1e9 for seconds in medians(repeats, through_messages, copy_pair))
    setup = "4 MiB body in 1 MiB messages and back, crc32 both ways; theirs: two copies between warm buffers"
    report("transfer_through_messages", ours, theirs, "GB/s", True, setup)


def small_messages(repeats: int) -> None:
    control = bytes(120)
    count = 2000

    def ours() -> None:
        for _ in range(count):
            unpack(pack(control))

    def theirs() -> None:
        for _ in range(count):
            bytes(memoryview(control + control))

    mine, plain = (seconds / count * 1e6 for seconds in medians(repeats, ours, theirs))
    setup = "pack + unpack of 120 control bytes; theirs: joining and copying such bytes"
    report("envelope_small", mine, plain, "us", False, setup)


def main() -> None:
    parser = argparse.ArgumentParser(description="encode and decode against a plain copy, in one run")
    parser.add_argument("--repeats", type=int, default=101)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    frames(repeats)
    transfers(repeats)
    small_messages(repeats)


if __name__ == "__main__":
    main()
