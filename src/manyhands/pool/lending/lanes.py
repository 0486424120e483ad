"""How many lanes a machine lends, and what each one is. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from manyhands.errors import UsageError

ALL = "all"


@dataclass(frozen=True)
class Lending:
    """What an owner lends: a name, a device (``"all"`` of a kind, None: the best one), some processors or all."""

    name: str
    device: str | None = None
    cpus: int | None = None
    verbose: bool = False

    def check(self, num_cpus: int) -> None:
        """UsageError where this machine, which has `num_cpus`, has not so many."""
        if self.cpus is not None and not 1 <= self.cpus <= num_cpus:
            raise UsageError(f"--cpus {self.cpus}: this process may use {num_cpus}")

    @property
    def may_be_several(self) -> bool:
        """Whether there may be more than one lane: then each name has a number."""
        return self.device == ALL or self.cpus is not None

    def lane_name(self, number: int) -> str:
        """The name of lane `number`, counted from 0."""
        return f"{self.name}#{number + 1}" if self.may_be_several else self.name


def devices(lending: Lending, first: str, num_cuda: int, threads: int) -> list[str]:
    """The device of each lane, once the first one is loaded (on `first`) and has joined a run of `threads` threads.

    A lane computes with as many threads as the run, since other numbers give other bits; so processors make as
    many lanes as the run's threads go into them.
    """
    if first.startswith("cuda"):
        return [f"cuda:{number}" for number in range(num_cuda)] if lending.device == ALL else [first]
    if first == "cpu" and lending.cpus is not None:
        return [first] * max(1, lending.cpus // max(1, threads))
    return [first]
