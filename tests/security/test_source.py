"""Nothing that could turn bytes into code stands in the source, and each floor keeps to its own tools."""

from __future__ import annotations

from pathlib import Path

import pytest
from source_rules import RULES, Finding, check

import manyhands

SOURCE = Path(manyhands.__file__).parent

# (file, rule): why it is no way in. Each entry must still be needed.
ALLOWED = {
    ("__init__.py", "modules named by a value"): "lazy public names, from a constant table",
    ("launch/__init__.py", "modules named by a value"): "lazy public names, from a constant table",
    ("launch/notebooks.py", "pickle in any form"): "the user's own cell, in a 0700 folder, to own ranks",
    ("launch/cell.py", "pickle in any form"): "the other end of that folder, on the same machine",
    ("pool/__init__.py", "modules named by a value"): "lazy public names, from a constant table",
    ("split/__init__.py", "modules named by a value"): "lazy public names, from a constant table",
    ("pool/target.py", "modules named by a value"): "the user's own file, named on the user's command line",
    ("pool/loaders.py", "connections that unpickle"): "pipes to our own children, with the user's dataset",
    ("training/workers.py", "connections that unpickle"): "waits for the end of a parent; no bytes pass",
    ("split/making/hired.py", "connections that unpickle"): "pipes to our own children, with the user's dataset",
    ("split/making/processes.py", "connections that unpickle"): "waits on those pipes",
    ("wire/environment.py", "the environment off its floor"): "what gRPC reads of it when it is imported",
}  # fmt: skip


def findings() -> list[Finding]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        found += check(path.read_text(encoding="utf-8"), path.relative_to(SOURCE).as_posix())
    return found


def test_the_source_keeps_the_rules() -> None:
    assert [f for f in findings() if (f.path, f.rule) not in ALLOWED] == []


def test_every_exception_is_still_needed() -> None:
    assert {(f.path, f.rule) for f in findings()} >= set(ALLOWED)


@pytest.mark.parametrize(
    ("snippet", "rule"),
    [
        ("import pickle", "pickle in any form"),
        ("from pickle import loads", "pickle in any form"),
        ("def f():\n    import dill as d\n    return d", "pickle in any form"),
        ("from cloudpickle import *", "pickle in any form"),
        ("import marshal, json", "pickle in any form"),
        ("import shelve", "pickle in any form"),
        ("import jsonpickle", "pickle in any form"),
        ("import torch\ntorch.load('f', weights_only=True)", "loaders that unpickle or run what they read"),
        ("import torch as t\nt.load('f')", "loaders that unpickle or run what they read"),
        ("from torch import load as read\nread('f')", "loaders that unpickle or run what they read"),
        ("import torch\nread = torch.jit.load", "loaders that unpickle or run what they read"),
        ("import torch.export\ntorch.export.load(f)", "loaders that unpickle or run what they read"),
        ("from torch.export import load", "loaders that unpickle or run what they read"),
        ("from torch.serialization import load", "loaders that unpickle or run what they read"),
        ("eval('1')", "text as code"),
        ("read = eval", "text as code"),
        ("eval = eval", "text as code"),
        ("exec(data)", "text as code"),
        ("compile(data, '', 'exec')", "text as code"),
        ("__import__(name)", "text as code"),
        ("import builtins\nbuiltins.exec(data)", "text as code"),
        ("from builtins import eval as look", "text as code"),
        ("import types\ntypes.FunctionType(code, {})", "text as code"),
        ("import importlib\nimportlib.import_module(name)", "modules named by a value"),
        ("from importlib import import_module\nimport_module(message.name)", "modules named by a value"),
        ("spec.loader.load().exec_module(x)", "modules named by a value"),
        ("import yaml\nyaml.load(text)", "yaml that makes objects"),
        ("import yaml\nyaml.load(text, Loader=yaml.Loader)", "yaml that makes objects"),
        ("from yaml import unsafe_load", "yaml that makes objects"),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", "numpy with pickle"),
        ("import numpy as np\nnp.load(f, None, True)", "numpy with pickle"),
        ("import numpy as np\nnp.load(f, allow_pickle=given)", "numpy with pickle"),
        ("import numpy as np\nnp.load(f, **given)", "numpy with pickle"),
        ("from multiprocessing.connection import Client", "connections that unpickle"),
        ("import multiprocessing as mp\nmp.Queue()", "connections that unpickle"),
        ("from torch.multiprocessing import Queue", "connections that unpickle"),
        ("from concurrent.futures import ProcessPoolExecutor", "connections that unpickle"),
        ("import subprocess\nsubprocess.run(line, shell=True)", "shells"),
        ("import os\nos.system(line)", "shells"),
        ("import grpc", "grpc off its floor"),
        ("from grpc import aio", "grpc off its floor"),
        ("import torch\ntorch.distributed.init_process_group()", "torch.distributed off its floor"),
        ("import os\nos.environ['A']", "the environment off its floor"),
        ("from os import environ", "the environment off its floor"),
        ("import os\nos.getenv('A')", "the environment off its floor"),
        ("import time\ntime.time()", "time off its floor"),
        ("from time import sleep", "time off its floor"),
        ("from datetime import datetime\ndatetime.now()", "time off its floor"),
    ],
)
def test_a_planted_offence_is_found(snippet: str, rule: str) -> None:
    assert rule in {finding.rule for finding in check(snippet, "pool/planted.py")}


@pytest.mark.parametrize(
    "snippet",
    [
        "model.eval()",
        "import re\nre.compile('a')",
        "import torch\nmodel = torch.compile(model)",
        "'import pickle; eval(1)'  # exec(x)",
        "class Graphs:\n    eval: int",
        "def compile(x):\n    return x\ncompile(1)",
        "import numpy as np\nnp.load(f)\nnp.load(f, allow_pickle=False)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)\nyaml.safe_load(text)",
        "import importlib\nimportlib.import_module('torch')",
        "from multiprocessing import shared_memory",
        "from safetensors.torch import load_file\nload_file('f')",
        "self._clock.time()",
        "from concurrent.futures import ThreadPoolExecutor",
        "import json\njson.load(f)",
    ],
)
def test_what_only_looks_like_one_is_left_alone(snippet: str) -> None:
    assert check(snippet, "pool/innocent.py") == []


def test_a_floor_may_use_its_own_tools() -> None:
    assert check("import grpc", "wire/dialer.py") == []
    assert check("import time\ntime.sleep(1)", "clock.py") == []
    assert check("import os\nos.environ", "settings/paths.py") == []
    assert check("import os\nos.environ", "wire/dialer.py") != []


def test_each_rule_was_planted() -> None:
    # A rule without an example above could be misspelt and never fire.
    marks = test_a_planted_offence_is_found.pytestmark  # type: ignore[attr-defined]
    planted = {rule for _, rule in marks[0].args[1]}
    assert {rule.name for rule in RULES} <= planted
