"""The closed set of messages between a boss, its workers, and two workers; nothing else is read from a stream.

::

    worker                                   boss
     | ── Hello ───────────────────────────────→ |   who I am, where I listen
     | ←─────────────────────────────── Welcome  |   your number
     | ←──────────────── Assign (+ weights)      |   your stages, and how to build them
     | ←──────────────── Expect, Connect         |   who will dial, whom to dial
     | ── Answer ──────────────────────────────→ |   to each of them
     | ←──────────────── Execute (+ a batch)     |   one step's operations, all at once
     | ⇄ Value (+ tensor) ⇄                      |   activations and gradients, to other workers or through the boss
     | ── Answer | Failed ─────────────────────→ |

A `generation` is one placement of the stages on workers: what belongs to an older one is dropped. Every field is
bounded here. Tensors travel beside a message (`parcels`). Knows no socket and no tensor.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from manyhands.pipeline.graph import Graph
from manyhands.pipeline.schedules.operations import Kind

PROTOCOL: Final = 1
BOSS: Final = -1
"""The boss's number among members and stages, where a value may come from or go to."""

Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Place = Annotated[int, Meta(ge=BOSS, le=1 << 20)]
Threads = Annotated[int, Meta(ge=1, le=4096)]
Short = Annotated[str, Meta(max_length=256)]
Sentence = Annotated[str, Meta(max_length=4000)]
Address = Annotated[str, Meta(max_length=255)]
Line = Annotated[str, Meta(max_length=400)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True, array_like=True):
    """Tagged with its class name; decoded strictly."""


# ---- between workers, and through the boss where two cannot reach each other -------------------------


class Introduced(_Message, frozen=True):
    """A worker's first word to another one: the number that the boss gave it."""

    member: Place


class Value(_Message, frozen=True):
    """What one stage made for another; its tensors follow. `member` is whom it is for."""

    generation: Count
    member: Place
    kind: Short
    edge: Short
    micro_batch: Count
    stage: Place
    """The stage that takes it."""


# ---- worker to boss ----------------------------------------------------------------------------------


class Hello(_Message, frozen=True):
    """The first message. `invite` lets other workers dial this one, at any of `addresses` and its port."""

    protocol: Count
    release: Short
    name: Short
    pid: Count
    device: Short
    memory_bytes: Count
    invite: Line
    addresses: Annotated[list[Address], Meta(max_length=16)]


class Answer(_Message, frozen=True):
    """The command is done; `numbers` is what it asked for, tensors follow where it asked for some."""

    generation: Count
    command: Count
    numbers: dict[Short, float] = {}


class Failed(_Message, frozen=True):
    """The command could not be done: the name of an error of ours, and its sentence."""

    generation: Count
    command: Count
    error: Short
    sentence: Sentence


class Unlinked(_Message, frozen=True):
    """The direct stream to another worker broke, while this placement was in force."""

    generation: Count
    member: Place
    reason: Sentence


# ---- boss to worker ----------------------------------------------------------------------------------


class Welcome(_Message, frozen=True):
    """The worker's number."""

    member: Place


class Assign(_Message, frozen=True):
    """The placement of generation `generation`; whatever the worker held before is forgotten.

    `bounds` is the first layer of each stage and, at the end, the number of layers; `owners` the member of each
    stage, replica after replica. The recipes of the worker's own layers follow as uint8 tensors by layer number.
    """

    generation: Count
    command: Count
    graph: Graph
    bounds: Annotated[list[Count], Meta(max_length=1 << 16)]
    owners: Annotated[list[Place], Meta(max_length=1 << 16)]
    shared: list[tuple[Short, list[Short], list[Count]]]
    """Parameters that several layers hold: name, other names, layers."""
    settings: Settings


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What every stage computes by."""

    seed: int
    threads: Threads
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tied: Literal["exact", "fast"] = "exact"
    recompute: bool = False


class Restore(_Message, frozen=True):
    """State follows, by the names of parameters; with `is_last` it is whole, and the worker answers.

    `step` is the number of the last optimizer step, -1 before the first; `lr` None: as the optimizer has it.
    """

    generation: Count
    command: Count
    is_last: bool
    step: Annotated[int, Meta(ge=-1)] = -1
    lr: float | None = None


class Expect(_Message, frozen=True):
    """Another worker will dial: it is the one whose key has this id, and no other."""

    command: Count
    member: Place
    key_id: Short


class Measure(_Message, frozen=True):
    """Say what each layer of a model takes here, in seconds and bytes, for `samples` samples; nothing stays of it.

    The recipes of all layers follow as uint8 tensors by layer number. What is in force before is forgotten.
    """

    generation: Count
    command: Count
    graph: Graph
    samples: Annotated[int, Meta(ge=1, le=1 << 20)]
    threads: Threads


class Connect(_Message, frozen=True):
    """Dial another worker at the first of these lines that works."""

    command: Count
    member: Place
    lines: Annotated[list[Line], Meta(max_length=32)]


class Execute(_Message, frozen=True):
    """Run these operations in order. The batch's own edges follow, `targets` with them where there is a loss.

    `step` is what random numbers are keyed by. The batch holds `micro_batches` of them, the first of which has number
    `first`. `factors` is what each micro-batch's loss counts for, of the whole step's. `loss` is a criterion of
    torch.nn as text; None: the boss has the loss. `update`: the optimizer's step after the last operation, by its
    number. `scale`: what losses are multiplied by beside, in fp16.
    """

    generation: Count
    command: Count
    step: Count
    operations: Annotated[list[tuple[Kind, Place, Count]], Meta(max_length=1 << 20)]
    first: Annotated[int, Meta(ge=0, le=1 << 16)]
    micro_batches: Annotated[int, Meta(ge=0, le=1 << 16)]
    factors: Annotated[list[float], Meta(max_length=1 << 16)]
    loss: Sentence | None = None
    update: Count | None = None
    retains: bool = True
    scale: Annotated[float, Meta(ge=1.0)] = 1.0


class Optimize(_Message, frozen=True):
    """The optimizer of every stage: a class of torch.optim by key, its options as JSON."""

    generation: Count
    command: Count
    kind: Short
    options: Sentence


What = Literal[
    "step", "skip", "zero", "train", "eval", "norms", "scale", "rate", "state", "clear", "statistics"
]


class Order(_Message, frozen=True):
    """One of the short commands: what each means stands in `worker`."""

    generation: Count
    command: Count
    what: What
    number: float = 0.0


class Abort(_Message, frozen=True):
    """Stop what belongs to this generation or to an older one; another placement follows."""

    generation: Count


class Farewell(_Message, frozen=True):
    """The boss needs this worker no more."""


FromBoss = (
    Farewell
    | Welcome
    | Measure
    | Assign
    | Restore
    | Expect
    | Connect
    | Execute
    | Optimize
    | Order
    | Abort
    | Value
)
FromWorker = Hello | Answer | Failed | Unlinked | Value
FromNeighbour = Introduced | Value
