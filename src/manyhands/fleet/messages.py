"""The closed set of messages between a coordinator and a node, and nothing else.

A gRPC message is an envelope (wire/envelope.py) whose control part is a short list of these, and whose
payload is a chunk of one body. A message that announces a body carries ``transfer`` and ``num_bytes``::

    node                                   coordinator
     | ── Hello ─────────────────────────────→ |   who I am, what model I hold
     | ←──────────── Welcome, (Program,) Everything, Batch.., Probe
     | ── Probed ────────────────────────────→ |   what my arithmetic gives
     | ←──────────── State (per step), Batch (ahead), Granted
     | ── Computed (per leaf) ───────────────→ |
     | ── Delivered (per subtree) ───────────→ |
     | ←──────────── Trimmed, Told, Finished

Every field is bounded here, so that the decoder refuses what a peer may not say. Names from peers are cleaned
where they enter. Nothing here knows a socket or a tensor.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from manyhands.errors import ProtocolError

PROTOCOL = 1
SMALL_BYTES = 1 << 16
ECHO_BYTES = 60 * 1024
"""The most that an echo carries each way: what fits a question."""
_T = TypeVar("_T")

Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Short = Annotated[str, Meta(max_length=128)]
Sentence = Annotated[str, Meta(max_length=2000)]
Hash = Annotated[str, Meta(max_length=64)]
Leaves = Annotated[int, Meta(ge=0, lt=1 << 20)]
Presence = Annotated[bytes, Meta(max_length=16384)]
Size = Annotated[int, Meta(ge=0, le=1 << 40)]
Shape = Annotated[tuple[Size, ...], Meta(max_length=64)]
TensorRow = tuple[Annotated[str, Meta(max_length=512)], Short, Shape]
TensorRows = Annotated[list[TensorRow], Meta(max_length=100_000)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True, array_like=True):
    """Tagged with its class name; decoded strictly."""


# ---- node to coordinator ----------------------------------------------------------------------------


class Hello(_Message, frozen=True):
    """The first message. ``model`` lists everything this node's model holds; None asks for a program."""

    protocol: int
    release: Short
    name: Short
    device: Short
    cores: Count
    manual: bool
    model: TensorRows | None
    trainable: Annotated[list[Annotated[str, Meta(max_length=512)]], Meta(max_length=100_000)]
    criterion: Sentence | None
    dataset_length: Count | None
    wants_compression: bool = False


class Probed(_Message, frozen=True):
    """What this process is and what it computes (training/numerics.py); it is ready for leases."""

    facts: Annotated[dict[Short, Short], Meta(max_length=16)]
    digest: Hash


class LeafDone(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One computed leaf: its mean loss (None from a loop that does not tell) and the seconds it took."""

    leaf: Leaves
    loss: float | None
    seconds: Annotated[float, Meta(ge=0.0, le=1e7)]


class Computed(_Message, frozen=True):
    """A leaf is computed and summed on the node, not delivered yet."""

    lease: Count
    incarnation: Count
    done: LeafDone


class Delivered(_Message, frozen=True):
    """The partial sum of one subtree follows as a body; ``present`` is a bit per parameter, little-endian.

    ``packed``: it is a unit's, and its fp32 travels as int8.
    """

    lease: Count
    incarnation: Count
    step: Count
    subtree: Annotated[int, Meta(ge=1, lt=1 << 21)]
    transfer: Count
    num_bytes: Count
    present: Presence
    leaves: Annotated[list[LeafDone], Meta(max_length=1 << 16)]
    packed: bool = False


class NotFinite(_Message, frozen=True):
    """A leaf's loss or gradient is NaN or infinite; ``digest`` is the crc32 of those bits."""

    lease: Count
    incarnation: Count
    leaf: Leaves
    digest: Count
    where: Sentence


class HandedBack(_Message, frozen=True):
    """The node gives a lease back. ``leaf`` is the one that it failed to compute, if it did; ``index`` the
    dataset item of it that could not be loaded.
    """

    lease: Count
    reason: Sentence
    leaf: Leaves | None = None
    index: Count | None = None


class Leaving(_Message, frozen=True):
    """The node goes on purpose."""

    reason: Sentence


# ---- coordinator to node ----------------------------------------------------------------------------


class Welcome(_Message, frozen=True):
    """What the run is: enough to build the layouts and to compute a leaf with the same bits."""

    run: Short
    incarnation: Count
    seed: int
    precision: Literal["fp32", "bf16", "fp16"]
    threads: Count
    instructions: Annotated[dict[Short, Short], Meta(max_length=8)]
    """What the coordinator's torch computes with (settings/instructions.py)."""
    folds: dict[Annotated[str, Meta(max_length=512)], Literal["mean", "agree", "first"]]
    criterion: Annotated[str, Meta(max_length=20_000)] | None
    data: Literal["ship", "local"]
    num_samples: Count
    num_steps: Count
    micro_batches: Count
    notes: list[Sentence]


class Program(_Message, frozen=True):
    """For a node that brought no model: the run's program follows (programs/format.py)."""

    transfer: Count
    num_bytes: Count


class Everything(_Message, frozen=True):
    """All parameters and buffers follow, in the node's own layout of everything."""

    transfer: Count
    num_bytes: Count


class State(_Message, frozen=True):
    """The moving part of the state follows: what a lease of step ``version`` computes with.

    ``packed``: as int8, the change from the version before.
    """

    version: Count
    transfer: Count
    num_bytes: Count
    packed: bool = False


class SmallBatch(_Message, frozen=True):
    """One leaf's data as a frame, small enough to travel among messages; often ahead of its lease."""

    step: Count
    leaf: Leaves
    frame: Annotated[bytes, Meta(max_length=SMALL_BYTES)]


class Batch(_Message, frozen=True):
    """One leaf's data follows as a frame, often ahead of its lease."""

    step: Count
    leaf: Leaves
    transfer: Count
    num_bytes: Count


class Indices(_Message, frozen=True):
    """One leaf's data as indices into the dataset that the node holds itself."""

    step: Count
    leaf: Leaves
    epoch: Count
    indices: Annotated[list[Count], Meta(max_length=1 << 20)]


class Probe(_Message, frozen=True):
    """Compute the leaves 0.. of the pseudo-step ``step`` under weights made from ``seed``."""

    seed: Count
    step: Count
    weights: list[float]


class Granted(_Message, frozen=True):
    """Leave to compute these subtrees of step ``step``; ``weights`` are those of their leaves, in order.

    ``depth`` is the tree's. ``scale`` multiplies the loss (fp16). The subtrees at ``unit_level`` are units: their
    sums travel as int8, and no larger ones at all; None: sums travel as fp32.
    """

    lease: Count
    incarnation: Count
    step: Count
    depth: Annotated[int, Meta(ge=0, le=20)]
    num_leaves: Leaves
    subtrees: tuple[int, ...]
    weights: list[tuple[Leaves, float]]
    scale: float
    unit_level: Annotated[int, Meta(ge=0, le=20)] | None = None


class Trimmed(_Message, frozen=True):
    """Go on with these subtrees of a lease only; none ends it."""

    lease: Count
    keep: tuple[int, ...]


class Told(_Message, frozen=True):
    """A sentence for the node's log: an answer refused, a note, a bench."""

    text: Sentence
    benched: bool = False


class Finished(_Message, frozen=True):
    """The run is over, drained or failed; ``retry`` asks the node to come back."""

    reason: Sentence
    ok: bool
    retry: bool = False


FromNode = Hello | Probed | Computed | Delivered | NotFinite | HandedBack | Leaving
FromCoordinator = (
    Welcome
    | Program
    | Everything
    | State
    | Batch
    | SmallBatch
    | Indices
    | Probe
    | Granted
    | Trimmed
    | Told
    | Finished
)

# ---- short questions (unary) --------------------------------------------------------------------


class AskStatus(_Message, frozen=True):
    """What `manyhands status` prints."""


class AskStop(_Message, frozen=True):
    """Drain and save."""


class AskInvite(_Message, frozen=True):
    """A new invite."""

    uses: Annotated[int, Meta(ge=1, le=1_000_000)]
    hours: Annotated[float, Meta(gt=0.0, le=1e6)]
    role: Literal["node", "observer", "owner"]


class AskRevoke(_Message, frozen=True):
    """End an invite (by id), and the streams of the nodes it admitted; or ban one node (by id)."""

    id: Short
    ban: bool = False


class AskStanding(_Message, frozen=True):
    """How the asker stands here and what the run would need of it; for every role."""


class AskEcho(_Message, frozen=True):
    """`num_bytes` zero bytes, please; `filler` is only there to be sent. For every role, within a budget."""

    filler: Annotated[bytes, Meta(max_length=ECHO_BYTES)]
    num_bytes: Annotated[int, Meta(ge=0, le=ECHO_BYTES)]


Question = AskStatus | AskStop | AskInvite | AskRevoke | AskStanding | AskEcho

_encoder = msgspec.msgpack.Encoder()
_from_node = msgspec.msgpack.Decoder(list[FromNode])
_from_coordinator = msgspec.msgpack.Decoder(list[FromCoordinator])
_question = msgspec.msgpack.Decoder(Question)


def encode(*messages: _Message) -> bytes:
    """The control part that holds `messages`, in order."""
    return _encoder.encode(messages)


def decode_from_node(control: bytes | memoryview) -> list[FromNode]:
    """What a node says; ProtocolError where it is none of that."""
    return _strict(_from_node, control)


def decode_from_coordinator(control: bytes | memoryview) -> list[FromCoordinator]:
    """What a coordinator says; ProtocolError where it is none of that."""
    return _strict(_from_coordinator, control)


def encode_question(question: Question) -> bytes:
    """A short question as bytes."""
    return _encoder.encode(question)


def decode_question(data: bytes) -> Question:
    """A short question; ProtocolError where it is none."""
    question: Question = _strict(_question, data)
    return question


def _strict(decoder: msgspec.msgpack.Decoder[_T], data: bytes | memoryview) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise ProtocolError(
            f"a control message of {len(data)} bytes is not one of ours ({error}): "
            "the peer runs other software or another version"
        ) from None
