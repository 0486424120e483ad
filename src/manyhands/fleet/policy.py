"""The numbers that leases go by, and the totals kept of them. Values only, no decisions."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

NEVER = float("inf")
_Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class Policy(msgspec.Struct, frozen=True):
    """The numbers that leases go by. Durations in seconds.

    A lease is overdue after max(`min_lease_seconds`, `lease_factor` x expected), where computing and the way
    there and back are expected; or after `unknown_lease_seconds` while no leaf has been measured. `max_copies`
    bounds the leases of one leaf that are not overdue, the first one counted. A cut must gain
    `min_gain_seconds`. A node that handed a lease back rests for `rest_seconds`. `verify` is the share of
    leases that need two equal answers.
    """

    min_lease_seconds: float = 2.0
    lease_factor: float = 3.0
    unknown_lease_seconds: float = 30.0
    max_copies: int = 2
    min_gain_seconds: float = 0.05
    rest_seconds: float = 1.0
    on_nonfinite: Literal["stop", "skip_step"] = "stop"
    verify: _Share = 0.0
    seed: int = 0


class Counts(msgspec.Struct):
    """Totals of this incarnation; leaves, except `leases`, `refused`, `late`, `duplicates`, `steps`."""

    leases: int = 0
    leased: int = 0
    applied: int = 0
    reissued: int = 0
    refused: int = 0
    late: int = 0
    duplicates: int = 0
    steps: int = 0
