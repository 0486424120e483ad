"""What split mode's stream costs: GB/s of 38.5 MB batches from a loader to a trainer, against a bare gRPC stream.

The trainer's ends live in one process of their own, the loader's ends here, and rounds are interleaved. A batch is
64 x 3 x 224 x 224 fp32 with its labels; it is made once, so what is measured is leases, frames, credits, chunks, and
the copy into reused memory. Bare gRPC moves as many bytes as 4 MiB messages, with the same options and certificates,
into nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import grpc
import torch
from common.numbers import Numbers

from manyhands import CPULoader, RemoteLoader
from manyhands.clock import SystemClock
from manyhands.wire import Gate, Invite, Limits
from manyhands.wire.limits import server_options
from wire import MESSAGE_BYTES, Bare, bare_side

SHAPE = (64, 3, 224, 224)
BATCH_BYTES = 4 * 64 * 3 * 224 * 224


def serve(pipe: Pipe, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["MANYHANDS_STATE_DIR"] = folder
    asyncio.run(serve_all(pipe, Path(folder)))


async def serve_all(pipe: Pipe, folder: Path) -> None:
    gate = Gate(folder / "bare", SystemClock())
    gate.open()
    bare = grpc.aio.server(options=server_options(Limits()))
    bare.add_generic_rpc_handlers((Bare(),))
    invite = gate.add(host="127.0.0.1", port=1)
    pair = [(gate.identity.key_pem, gate.identity.certificate_pem)]
    roots = gate.identity.certificate_pem + gate.roots()
    credentials = grpc.ssl_server_credentials(pair, roots, require_client_auth=True)
    port = bare.add_secure_port("127.0.0.1:0", credentials)
    await bare.start()
    pipe.send((str(invite), port, gate.identity.certificate_pem))
    while await asyncio.to_thread(pipe.recv) == "train":
        await asyncio.to_thread(train, pipe)
    await bare.stop(0)
    gate.close()


def train(pipe: Pipe) -> None:
    """Take every batch of one job; tell how many bytes came in how many seconds, from the first lease on."""
    with RemoteLoader(0, device="cpu") as batches:
        pipe.send(batches.address[1])
        count = len(batches)
        start = time.perf_counter()
        for x, _ in batches:
            assert x.shape == SHAPE
        pipe.send((count * BATCH_BYTES, time.perf_counter() - start))


def our_round(pipe: Pipe, loader: CPULoader) -> float:
    pipe.send("train")
    loader.start_loading("127.0.0.1", epochs=1, gpu_port=pipe.recv())
    num_bytes, seconds = pipe.recv()
    return float(num_bytes / seconds / 1e9)


def bare_round(send: Any, count: int) -> float:
    messages = round(count * BATCH_BYTES / MESSAGE_BYTES)
    start = time.perf_counter()
    send(messages)
    return messages * MESSAGE_BYTES / (time.perf_counter() - start) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["MANYHANDS_ADVANCED__SHARED_MEMORY"] = "false"  # as between two machines
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    ready = (torch.randn(SHAPE), torch.arange(SHAPE[0]))
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MANYHANDS_STATE_DIR"] = folder
        server = context.Process(target=serve, args=(there, folder))
        server.start()
        line, port, certificate = here.recv()
        send = bare_side(Invite.parse(line), port, certificate, bytes(range(256)) * (MESSAGE_BYTES // 256))
        loader = CPULoader(num_workers=0)
        data = Numbers(SHAPE[0] * arguments.count)
        loader.setup_dataset(data, batch_size=SHAPE[0], shuffle=False, collate_fn=lambda samples: ready)
        for number in range(arguments.rounds + 1):
            pair = our_round(here, loader), bare_round(send, arguments.count)
            if number:  # the first one warms both sides up
                ours.append(pair[0])
                theirs.append(pair[1])
        here.send("stop")
        server.join(20)
    mine, bare = statistics.median(ours), statistics.median(theirs)
    size = f"{arguments.count} batches of 38.5 MB a round, median of {arguments.rounds}"
    line = {
        "name": "split_wire",
        "ours": round(mine, 3),
        "theirs": round(bare, 3),
        "ratio": round(mine / bare, 3),
    }
    setup = f"{size}, loopback, trainer in its own process; theirs: bare gRPC and TLS 1.3, same options"
    print(json.dumps({**line, "unit": "GB/s", "higher_is_better": True, "setup": setup}), flush=True)


if __name__ == "__main__":
    main()
