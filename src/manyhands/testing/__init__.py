"""Real processes on this machine that are killed on purpose: for this project's tests and for its users'.

Start with :class:`LocalCluster`; :class:`Fault` says what goes wrong in a node, and when.
"""

from manyhands.testing.cluster import LocalCluster
from manyhands.testing.faults import Fault, Fired

__all__ = ["Fault", "Fired", "LocalCluster"]
