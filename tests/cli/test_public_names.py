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
    pool = {"CentralServer", "TrainingNode", "Report", "reference", "__version__"}
    split = {"CPULoader", "GPUTrainer", "RemoteLoader", "ColabGPUTrainer", "quick_colab_setup"}
    pipeline = {"BossMan", "wrapped_linear"}
    others = pool | split | pipeline | {"create_simple_dataset"}
    assert set(manyhands.__all__) == own_errors | others
    for name in manyhands.__all__:
        assert getattr(manyhands, name) is not None
    from manyhands.pool.node import TrainingNode

    assert manyhands.TrainingNode is TrainingNode


@pytest.mark.parametrize("name", ["config", "launch", "pipeline", "split"])
def test_rooms_of_the_modes_are_reached_from_the_package(name):
    script = f"import manyhands; print(manyhands.{name}.__name__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == f"manyhands.{name}"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'CentralSever'"):
        manyhands.CentralSever  # noqa: B018
    assert not hasattr(manyhands, "anything")


def test_importing_the_package_loads_no_torch_and_prints_nothing():
    script = "import manyhands, manyhands.testing, sys; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
