"""The package's public face: what it exports, what it promises and does not have yet, and what it loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

import manyhands
from manyhands import errors


def test_exported_names():
    """A name appears or goes on purpose only."""
    assert sorted(manyhands.__all__) == manyhands.__all__ == dir(manyhands)
    own_errors = {name for name, value in vars(errors).items() if isinstance(value, type)} - {"ClassVar"}
    others = {"CentralServer", "TrainingNode", "Report", "reference", "__version__"}
    assert set(manyhands.__all__) == own_errors | others
    for name in manyhands.__all__:
        assert getattr(manyhands, name) is not None
    from manyhands.pool.node import TrainingNode

    assert manyhands.TrainingNode is TrainingNode


@pytest.mark.parametrize("name", ["CPULoader", "GPUTrainer", "BossMan", "launch", "create_simple_dataset"])
def test_what_is_not_built_is_refused_by_name(name):
    with pytest.raises(ImportError, match=f"{name} .*is not built yet; this release has the pool"):
        getattr(manyhands, name)
    done = subprocess.run(
        [sys.executable, "-c", f"from manyhands import {name}"], capture_output=True, text=True
    )
    assert f"ImportError: {name} (" in done.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'CentralSever'"):
        manyhands.CentralSever  # noqa: B018
    assert not hasattr(manyhands, "anything")


def test_importing_the_package_loads_no_torch_and_prints_nothing():
    script = "import manyhands, manyhands.testing, sys; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
