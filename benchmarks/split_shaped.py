"""Batches over a slow and far link: bytes a second against what the link carries, and what sending uint8 is worth.

A loader and a trainer on hosts of their own, with 100 Mbit/s and 40 ms between them. The batches are ready, so that
the link is all that is waited for. The payload rate is the link's less the headers of TCP and IP in each packet.
Run as root: ``python benchmarks/split_shaped.py``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from multiprocessing.connection import Connection as Pipe

import torch
from common.cast import Cast, answer, prepare_process
from common.lines import report, spread
from common.links import MTU, Host, hosts
from common.numbers import Numbers

from manyhands import CPULoader, RemoteLoader

PICTURES = 32
SHAPE = (PICTURES, 3, 224, 224)
HEADER_BYTES = 52
"""Of IPv4 and of TCP with its time stamps (RFC 7323), in each packet."""
SKIPPED = 3
"""Batches before the clock starts: TCP and the window have grown by then."""


def train(pipe: Pipe, folder: str) -> None:
    """Seconds from the end of the first batches to that of the last, job by job."""
    prepare_process(folder)
    while pipe.recv():
        with RemoteLoader(0, device="cpu") as batches:
            pipe.send((batches.address[1], batches.invite))
            start = 0.0
            for number, _ in enumerate(batches, 1):
                if number == SKIPPED:
                    start = time.perf_counter()
            pipe.send(time.perf_counter() - start)


def feed(pipe: Pipe, folder: str, address: str) -> None:
    """A job for each word: where to, how many batches, how narrow."""
    prepare_process(folder)
    ready = (torch.rand(SHAPE), torch.arange(PICTURES))
    while (job := pipe.recv()) is not None:
        port, invite, count, transfer_dtype = job
        loader = CPULoader(num_workers=0, invite=invite)
        data = Numbers(PICTURES * count)
        loader.setup_dataset(
            data, PICTURES, shuffle=False, transfer_dtype=transfer_dtype, collate_fn=lambda samples: ready
        )
        loader.start_loading(address, epochs=1, gpu_port=port)


def turn(trainer: Pipe, loader: Pipe, count: int, transfer_dtype: str | None) -> float:
    """Samples a second of one job."""
    trainer.send(True)
    port, invite = answer(trainer)
    loader.send((port, invite, count, transfer_dtype))
    return (count - SKIPPED) * PICTURES / float(answer(trainer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--batches", type=int, default=12, help="of a turn in fp32; four times as many in uint8"
    )
    parser.add_argument("--mbit", type=float, default=100.0, help="of both links, each way")
    parser.add_argument("--rtt-ms", type=float, default=40.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    delay = given.rtt_ms / 4e3  # a round trip passes four ends
    here, there = (Host(f"mh{os.getpid()}-{number}", number, given.mbit, delay) for number in (1, 2))
    wide, narrow = [], []
    with hosts(here, there), Cast() as cast:
        trainer, _ = cast.start(train, host=here.name)
        loader, _ = cast.start(feed, here.address, host=there.name)
        for _ in range(given.turns):
            wide.append(turn(trainer, loader, given.batches, None))
            narrow.append(turn(trainer, loader, 4 * given.batches, "uint8"))
        trainer.send(False)
        loader.send(None)
    payload = given.mbit / 8 * (MTU - HEADER_BYTES) / MTU
    sample_megabytes = 4 * 3 * 224 * 224 / 1e6
    link = f"a link of {given.mbit:g} Mbit/s, {given.rtt_ms:g} ms, TLS, packets of {MTU} bytes"
    setup = (
        f"batches of {PICTURES} x 3 x 224 x 224, {given.turns} turns of {given.batches}, the first {SKIPPED} left out; "
        f"{link}; ours {spread([rate * sample_megabytes for rate in wide])}; theirs: the link's payload rate"
    )
    report("split_shaped", statistics.median(wide) * sample_megabytes, payload, "MB/s", True, setup)
    setup = (
        f'the same with transfer_dtype="uint8" against fp32, in turns; {link}; ours {spread(narrow)}; '
        f"theirs {spread(wide)}"
    )
    report("split_shaped_uint8", statistics.median(narrow), statistics.median(wide), "samples/s", True, setup)


if __name__ == "__main__":
    main()
