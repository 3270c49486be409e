"""The house rules that a machine can check: import arrows, no torch where none belongs, files and modules described."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("cost_models", "planner", "executor", "longvila", "validation")
MAY_IMPORT = {
    "cost_models": {"cost_models"},
    "planner": {"planner", "cost_models"},
    "executor": {"executor", "planner", "cost_models", "longvila"},
    "longvila": {"longvila"},
    "validation": {"validation", "cost_models"},
}


INSIDE = (
    {"errors", "units", "strict", "number", "certificate"},
    {"hardware", "models", "curves"},
    {"workload", "strategy", "program", "profile", "ssd_messages"}
    | {"tiles", "token_layout", "token_shares", "balanced_rows"},
    {"timing"},
    {"framework", "layer", "flops"},
    {"step"},
    {"memory", "basis", "cost"},
    {"bands", "room", "quality"},
    {"pricing", "batch", "longest"},
)
"""Of cost_models, from the ground up: each floor imports from itself and from those before it."""


@cache
def modules(package):
    return sorted((ROOT / package).rglob("*.py"))


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path):
    """Top-level names of everything a module imports, at any depth of its code."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_follow_the_arrows(package):
    for path in modules(package):
        ours = set(imported(path)) & set(PACKAGES)
        assert ours <= MAY_IMPORT[package], f"{path.relative_to(ROOT)} imports {sorted(ours - MAY_IMPORT[package])}"


def test_cost_models_import_downwards():
    root = ROOT / "cost_models"
    floor = {name: place for place, names in enumerate(INSIDE) for name in names}
    assert set(floor) == {path.name.removesuffix(".py") for path in root.iterdir()} - {
        "presets",
        "frameworks",
        "certificate.json",
        "__init__",
        "__pycache__",
    }
    for path in modules("cost_models"):
        home = path.relative_to(root).parts[0].removesuffix(".py")
        if home == "__init__":
            continue
        for node in ast.walk(tree(path)):
            parts = node.module.split(".") if isinstance(node, ast.ImportFrom) and node.module else [""]
            if parts[0] == "cost_models":
                for name in parts[1:2] or [alias.name for alias in node.names]:
                    assert floor[name] <= floor[home], f"{path.relative_to(ROOT)} imports {name}"


NAMED_CONSTRUCTORS = {"cost_models.hardware.cluster", "cost_models.models.model"}
"""`Cluster.load` and `Model.load` call the readers of files, which make clusters and models: they import inside."""


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def arrows(path, known, inside):
    """Modules among `known` that a module imports; with `inside` also those that its functions import."""
    waiting, names = [tree(path)], []
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            several = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [name if name in known else node.module for name in several]
        elif not isinstance(node, ast.expr) and (inside or not isinstance(node, ast.FunctionDef)):
            waiting += ast.iter_child_nodes(node)
    return set(names) & set(known)


def test_no_circles_between_modules():
    """Neither at the top, nor for types alone, nor inside of functions (but for two named constructors)."""
    paths = {dotted(path): path for package in (*PACKAGES, "benchmarks") for path in modules(package)}
    graph = nx.DiGraph(
        (name, other)
        for name, path in paths.items()
        for other in arrows(path, paths, inside=name not in NAMED_CONSTRUCTORS)
    )
    circles = [sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1]
    assert not circles, circles


@pytest.mark.parametrize("package", ["cost_models", "planner"])
def test_no_torch_in_the_planning_half(package):
    for path in modules(package):
        assert not {"torch", "transformers"} & set(imported(path)), path


def test_planning_works_with_torch_blocked_and_stays_light():
    code = """
import sys
for name in ("torch", "transformers", "numba", "scipy.sparse"):
    sys.modules[name] = None
from cost_models import Cluster, Model, Strategy, Workload, price
import planner, planner.command
from planner import plan, simulate
work = Workload(Model.load("longvila-8b"), context_tokens=2**17)
found = plan(Cluster.load("dgx-h100", nodes=1), work)
assert found.cost.fits and found.simulated.step_s > 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is(package):
    for path in modules(package):
        assert ast.get_docstring(tree(path)), path


def test_functions_stay_readable():
    for package in PACKAGES:
        for path in modules(package):
            for node in ast.walk(tree(path)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    length = (node.end_lineno or 0) - node.lineno + 1
                    assert length <= 80, f"{path.relative_to(ROOT)}: {node.name} has {length} lines"


def test_every_invariant_names_a_test_that_exists():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) >= 15
    for file, name in named:
        found = ast.walk(tree(ROOT / file))
        assert name in {node.name for node in found if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md")),
    ],
)
def test_files_that_pages_name_exist(page):
    """A file named with its folder is there; names with <…> stand for others."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(
        r"`((?:cost_models|planner|executor|longvila|validation|tests|benchmarks|examples|docs|scripts|measurements)/[\w./-]+)`",
        text,
    ):
        assert (ROOT / name).exists(), f"{page} names {name}"


def test_cost_models_name_their_types():
    """`Any` stands in ten signatures at most: plain data from files, and what is built from it."""
    vague = []
    for path in modules("cost_models"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                given = node.args
                taken = (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg)
                hints = [argument.annotation for argument in taken if argument is not None] + [node.returns]
                names = [name.id for hint in hints if hint for name in ast.walk(hint) if isinstance(name, ast.Name)]
                vague += [f"{path.name}: {node.name}"] * ("Any" in names)
    assert len(vague) <= 10, vague
