"""How many lanes a machine lends, and what each one is. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from manyhands.errors import UsageError

ALL = "all"


@dataclass(frozen=True)
class Lending:
    """What an owner lends: a name, a device (``"all"`` of a kind, None: the best one), some processors or all.

    ``num_ranks`` processes make one node; its one lane is a group's first rank. With `quiet_seconds` it computes
    only while the owner's own programs have taken next to nothing for so long.
    """

    name: str
    device: str | None = None
    cpus: int | None = None
    verbose: bool = False
    num_ranks: int = 1
    quiet_seconds: float | None = None

    def check(self, num_cpus: int) -> None:
        """UsageError where this machine, which has `num_cpus`, has not so many, or where wishes contradict."""
        if self.cpus is not None and not 1 <= self.cpus <= num_cpus:
            raise UsageError(f"--cpus {self.cpus}: this process may use {num_cpus}")
        if self.num_ranks > 1 and self.device == ALL:
            raise UsageError(
                "--device all makes each GPU a node, --nproc N makes N processes one node, each with a GPU of its "
                "own where there are any: give one of them"
            )
        if self.cpus is not None and self.num_ranks > self.cpus:
            raise UsageError(
                f"--nproc {self.num_ranks} with --cpus {self.cpus}: each process needs a processor of its own"
            )

    @property
    def may_be_several(self) -> bool:
        """Whether there may be more than one lane: then each name has a number."""
        return self.num_ranks == 1 and (self.device == ALL or self.cpus is not None)

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
    if first == "cpu" and lending.cpus is not None and lending.num_ranks == 1:
        return [first] * max(1, lending.cpus // max(1, threads))
    return [first]
