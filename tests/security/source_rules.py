"""What the source may not say, found in its syntax tree; knows rules and files, runs nothing.

A name is followed through the imports of its module, so that ``import torch as t; t.load`` is ``torch.load``.
A mention counts, not only a call: ``reader = eval`` is as good as calling it.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass

_SAFE_LOADERS = ("yaml.SafeLoader", "yaml.CSafeLoader")
_ENVIRONMENT = ("os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv")


@dataclass(frozen=True)
class Rule:
    """Dotted names that are forbidden, with all below them, but for those excepted by name."""

    name: str
    forbidden: tuple[str, ...]
    but: tuple[str, ...] = ()
    rooms: tuple[str, ...] = ()
    """The rooms (packages or modules of ours) in which it is allowed."""


RULES = (
    Rule(
        "pickle in any form",
        (
            "pickle", "_pickle", "pickletools", "cloudpickle", "dill", "marshal", "shelve", "jsonpickle", "joblib",
            "copyreg", "numpy.core.records", "pandas.read_pickle",
        ),
    ),
    Rule(
        "loaders that unpickle or run what they read",
        (
            "torch.load", "torch.serialization", "torch.jit", "torch.export.load", "torch.package", "torch.hub",
            "torch.utils.cpp_extension", "torch._inductor.aoti_load_package", "sympy", "pty", "runpy", "code", "codeop",
        ),
    ),
    Rule("text as code", ("eval", "exec", "compile", "__import__", "types.FunctionType", "types.CodeType")),
    Rule("shells", ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput")),
    Rule(
        "connections that unpickle",
        (
            "multiprocessing", "torch.multiprocessing", "torch.distributed.rpc", "xmlrpc", "asyncore",
            "concurrent.futures.ProcessPoolExecutor", "concurrent.futures.process", "logging.config",
        ),
        but=("multiprocessing.shared_memory", "multiprocessing.resource_tracker"),
    ),
    Rule(
        "yaml that makes objects",
        ("yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all", "yaml.UnsafeLoader",
         "yaml.Loader", "yaml.FullLoader", "yaml.CLoader"),
    ),
    Rule("modules named by a value", ("importlib.util.spec_from_file_location", "importlib.machinery")),
    Rule("grpc off its floor", ("grpc",), rooms=("wire",)),
    Rule("torch.distributed off its floor", ("torch.distributed",), rooms=("launch",)),
    Rule("the environment off its floor", _ENVIRONMENT, rooms=("settings", "launch")),
    Rule(
        "time off its floor",
        ("time.time", "time.time_ns", "time.sleep", "time.monotonic", "time.monotonic_ns", "time.perf_counter",
         "time.perf_counter_ns", "datetime.datetime.now", "datetime.datetime.utcnow"),
        rooms=("clock",),
    ),
)  # fmt: skip


@dataclass(frozen=True, order=True)
class Finding:
    """One place that breaks one rule."""

    path: str
    line: int
    rule: str
    name: str


def check(source: str, path: str) -> list[Finding]:
    """Everything in `source` that breaks a rule; `path` is relative to the package, with slashes."""
    tree = ast.parse(source)
    names = _imported(tree)
    found = {
        Finding(path, line, rule.name, name)
        for line, name in _mentions(tree, names)
        for rule in RULES
        if _breaks(rule, name, path)
    }
    return sorted(found | {Finding(path, line, rule, name) for line, rule, name in _calls(tree, names)})


def _breaks(rule: Rule, name: str, path: str) -> bool:
    if path.removesuffix(".py").split("/")[0] in rule.rooms or any(_is_below(name, but) for but in rule.but):
        return False
    return any(_is_below(name, forbidden) for forbidden in rule.forbidden)


def _is_below(name: str, top: str) -> bool:
    return name == top or name.startswith(f"{top}.")


def _imported(tree: ast.AST) -> dict[str, str]:
    """What each imported name of the module stands for, as a dotted name."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _mentions(tree: ast.AST, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Every dotted name that the module imports or uses, with its line."""
    own, imported = _bound(tree), {name.split(".")[0] for name in names.values()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                # `from x import *` cannot be followed: it is as good as all of x.
                yield node.lineno, _plain(f"{node.module}.{alias.name}".removesuffix(".*"))
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            name = _dotted(node, names) or ""
            top = name.split(".")[0]
            if top in imported or (hasattr(builtins, top) and top not in own):
                yield node.lineno, _plain(name)


def _bound(tree: ast.AST) -> set[str]:
    """Names that the module makes its own: a function called `compile` is not the builtin."""
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return defined | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}


def _plain(name: str) -> str:
    return name.removeprefix("builtins.")


def _dotted(node: ast.expr, names: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value, names)
        return None if before is None else f"{before}.{node.attr}"
    return None


def _calls(tree: ast.AST, names: dict[str, str]) -> Iterator[tuple[int, str, str]]:
    """Calls whose arguments decide."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _dotted(node.func, names) or ""
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in ("numpy.load", "numpy.lib.format.read_array") and not _is_without_pickle(node, given):
            yield node.lineno, "numpy with pickle", name
        if name in ("yaml.load", "yaml.load_all") and not _is_safe_loader(node, given, names):
            yield node.lineno, "yaml that makes objects", name
        if name == "importlib.import_module" and not (node.args and isinstance(node.args[0], ast.Constant)):
            yield node.lineno, "modules named by a value", name
        if _is_true(given.get("shell")):
            yield node.lineno, "shells", f"{name}(shell=True)"
        if isinstance(node.func, ast.Attribute) and node.func.attr == "exec_module":
            yield node.lineno, "modules named by a value", "exec_module"


def _is_without_pickle(node: ast.Call, given: dict[str | None, ast.expr]) -> bool:
    """numpy.load(file, mmap_mode, allow_pickle): False by default, and said by nobody else."""
    return None not in given and len(node.args) < 3 and not _may_be_true(given.get("allow_pickle"))


def _may_be_true(value: ast.expr | None) -> bool:
    return value is not None and not (isinstance(value, ast.Constant) and value.value is False)


def _is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def _is_safe_loader(node: ast.Call, given: dict[str | None, ast.expr], names: dict[str, str]) -> bool:
    loader = given.get("Loader") or (node.args[1] if len(node.args) > 1 else None)
    return loader is not None and _dotted(loader, names) in _SAFE_LOADERS
