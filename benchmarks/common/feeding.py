"""One training loop, fed by a loader elsewhere or by a rival beside it: the job of the ``split_vs`` benchmarks.

::

    this process        trainer process
    CPULoader, 2 workers ──► RemoteLoader ─┐
                             the rival ────┴─► the same model, turn by turn

A picture takes some milliseconds of processor time to prepare, so that two workers are what both sides wait for; or
next to none, so that it is the feeding itself.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection as Pipe
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from common.lines import report, spread
from manyhands import CPULoader, RemoteLoader

BATCH = 32
WORKERS = 2
SIDE = 96
SKIPPED = 12
"""Batches of a turn before the clock starts: more than either side may have ready from before."""

Feed = Iterable[Any]


class Pictures(Dataset[tuple[Tensor, int]]):
    """A photograph's random crop, resized, turned, coloured and blurred, as for ImageNet."""

    def __init__(self, length: int) -> None:
        self._length = length
        generator = torch.Generator().manual_seed(0)
        self._photo = torch.randint(0, 256, (3, 480, 640), dtype=torch.uint8, generator=generator)
        self._blur = torch.ones(3, 1, 5, 5) / 25

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        top, left = int(torch.randint(0, 160, ())), int(torch.randint(0, 320, ()))
        crop = self._photo[:, top : top + 320, left : left + 320].float().unsqueeze(0) / 255
        picture = nn.functional.interpolate(crop, (SIDE, SIDE), mode="bicubic", antialias=True)
        if torch.rand(()) < 0.5:
            picture = picture.flip(3)
        picture = (picture - picture.mean()) * (0.6 + 0.8 * torch.rand(())) + torch.rand(3, 1, 1)
        return nn.functional.conv2d(picture, self._blur, padding=2, groups=3)[0], index % 10


class Flips(Pictures):
    """The same, with next to nothing to prepare: a crop, turned or not."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        top, left = int(torch.randint(0, 384, ())), int(torch.randint(0, 544, ()))
        picture = self._photo[:, top : top + SIDE, left : left + SIDE].float() / 255
        return picture.flip(2) if torch.rand(()) < 0.5 else picture, index % 10


class Loop:
    """The model and its optimizer; a turn is one pass over a feed."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._model = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
        self._model(torch.zeros(1, 3, SIDE, SIDE))
        self._optimizer = torch.optim.SGD(self._model.parameters(), 1e-3)

    def turn(self, feed: Feed, skipped: int) -> float:
        """Samples a second, the first `skipped` batches left out."""
        start, samples = time.perf_counter(), 0
        for number, (x, y) in enumerate(feed):
            self._optimizer.zero_grad()
            nn.functional.cross_entropy(self._model(x), y).backward()
            self._optimizer.step()
            if number + 1 == skipped:
                start, samples = time.perf_counter(), 0
            else:
                samples += len(y)
        return samples / (time.perf_counter() - start)


class Rival(Protocol):
    """The other side's feed; made in the trainer's process, once."""

    skipped: int

    def __iter__(self) -> Any: ...


MakeRival = Callable[[Pictures], Rival]
"""A module's own name, so that it can be spawned."""


def train(pipe: Pipe, rival: MakeRival, pictures: Pictures, turns: int) -> None:
    """The trainer's process: turns of both sides in alternation, after one of each that does not count."""
    os.dup2(2, 1)  # stdout is for figures, and this process prints an invite
    torch.set_num_threads(1)
    loop, other = Loop(), rival(pictures)
    loop.turn(other, other.skipped)
    with RemoteLoader(0, device="cpu") as batches:
        pipe.send(batches.address[1])
        loop.turn(batches, SKIPPED)
        for _ in range(turns):
            pipe.send((loop.turn(batches, SKIPPED), loop.turn(other, other.skipped)))


def compare(name: str, pictures: Pictures, rival: MakeRival, about: str, turns: int) -> None:
    """Run both sides and print the line."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with tempfile.TemporaryDirectory(prefix="manyhands-bench-") as folder:
        os.environ["MANYHANDS_STATE_DIR"] = folder
        trainer = context.Process(target=train, args=(there, rival, pictures, turns))
        trainer.start()
        there.close()
        loader = CPULoader(num_workers=WORKERS)
        loader.setup_dataset(pictures, batch_size=BATCH)
        loader.start_loading("127.0.0.1", epochs=turns + 1, gpu_port=here.recv())
        rates = [here.recv() for _ in range(turns)]
        trainer.join(60)
    ours, theirs = ([pair[side] for pair in rates] for side in (0, 1))
    pace = f"{len(pictures) // BATCH} batches of {BATCH} a turn, {turns} turns in alternation after one"
    setup = (
        f"{type(pictures).__name__.lower()} of 3 x {SIDE} x {SIDE} fp32, {pace}; {WORKERS} workers on both sides; "
        f"ours, over TLS on loopback: {spread(ours)}; theirs, {about}: {spread(theirs)}"
    )
    report(name, statistics.median(ours), statistics.median(theirs), "samples/s", True, setup)
