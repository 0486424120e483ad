"""Where the words of ``manyhands launch`` go. Loads no other verb: its start is what users time."""

from __future__ import annotations

from collections.abc import Sequence


def run(arguments: Sequence[str]) -> int:
    """Run them here, on hosts, or on a Ray cluster's machines; the exit code."""
    if any(word == "--on" or word.startswith("--on=") for word in arguments):
        from manyhands.clusters.raylaunch import launch as launch_on_ray

        return launch_on_ray(arguments)
    from manyhands.launch.starting import launch

    return launch(arguments)
