"""How many nodes on which machines, and what would never compute."""

from __future__ import annotations

import pytest

from manyhands.clusters.plan import Machine, Needs, check, missing, needs_of
from manyhands.errors import UsageError

CPUS = Machine("a", "10.0.0.1", 8)
GPUS = Machine("b", "10.0.0.2", 16, 2)


@pytest.mark.parametrize(
    ("device", "cpus", "num_ranks", "machines", "needs"),
    [
        (None, None, 1, [CPUS], Needs(1)),
        (None, 3, 1, [CPUS], Needs(3)),
        (None, None, 4, [CPUS], Needs(4)),
        (None, None, 1, [CPUS, GPUS], Needs(1, 1)),
        (None, None, 2, [CPUS, GPUS], Needs(2, 2)),
        ("cpu", None, 1, [CPUS, GPUS], Needs(1)),
        ("cuda", 4, 1, [CPUS], Needs(4, 1)),
    ],
)
def test_what_a_node_takes(device, cpus, num_ranks, machines, needs):
    assert needs_of(device, cpus, num_ranks, machines) == needs


def test_a_cluster_says_which_device():
    with pytest.raises(UsageError, match="cuda:1"):
        needs_of("cuda:1", None, 1, [GPUS])


def test_each_machine_gets_what_it_has_room_for_and_a_new_one_later():
    assert missing([CPUS], Needs(3), {}) == ["a", "a"]
    assert missing([CPUS, GPUS], Needs(3), {"a": 2}) == ["b"] * 5
    assert missing([CPUS, GPUS], Needs(1, 1), {}) == ["b", "b"]
    assert missing([CPUS], Needs(3), {"a": 2, "gone": 4}) == []


def test_a_node_without_room_is_named_unless_the_cluster_may_grow():
    with pytest.raises(UsageError, match="no machine of the cluster has room for a node of 9 processors"):
        check([CPUS], Needs(9), None, "203.0.113.7")
    check([CPUS], Needs(9), 2, "203.0.113.7")


def test_a_coordinator_on_loopback_is_reached_from_its_own_machine_only():
    check([CPUS], Needs(1), None, "127.0.0.1")
    with pytest.raises(UsageError, match="which only its own machine reaches"):
        check([CPUS, GPUS], Needs(1), None, "localhost")
