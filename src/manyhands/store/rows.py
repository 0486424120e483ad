"""The rows of the ledger: small immutable facts, one class a kind.

They are made on the path of every committed step, so they are plain structs without behaviour.
"""

from __future__ import annotations

import msgspec


class Credit(msgspec.Struct, frozen=True, gc=False):
    """One leaf of one committed step, credited to the node whose answer covered it first.

    `first_sample_position` is the leaf's first place in the epoch's order; `samples` places follow it.
    """

    step: int
    epoch: int
    leaf: int
    node_key: str
    lease: int
    samples: int
    first_sample_position: int


class Commit(msgspec.Struct, frozen=True, gc=False):
    """One optimizer step that happened.

    `loss` is None where a loop of the user's own told none; `weights_hash` (hexadecimal) comes every few steps.
    """

    step: int
    epoch: int
    samples: int
    loss: float | None
    weights_hash: str | None = None


class Quarantine(msgspec.Struct, frozen=True, gc=False):
    """A dataset item that the run leaves out from now on, and why."""

    epoch: int
    index: int
    reason: str


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """An answer or a peer that was turned away; `node` is its key or its address."""

    reason: str
    node: str


class Roster(msgspec.Struct, frozen=True, gc=False):
    """A node came, left, was benched or was banned (`event`, one word)."""

    node_key: str
    name: str
    event: str


Row = Credit | Commit | Quarantine | Refusal | Roster
