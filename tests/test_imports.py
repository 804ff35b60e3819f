"""Imports run downward only, and importing the package changes nothing in the process."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "ppgen"
# From the bottom up. A file may import from its own layer's files of the same package and from layers below.
LAYERS = [
    {"errors", "numbers"},
    {"nn", "pair", "files"},
    {"distributions"},
    {"posteriors", "decoders"},
    {"priors"},  # some are made of posteriors
    {"models", "inference", "data"},
    {"catalogue", "check", "compare", "disentanglement", "judge", "plots"},
    {"runs"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# The same within ppgen/inference.
INFERENCE = [{"programs"}, {"execution"}, {"losses", "evaluation"}, {"training", "predictions"}]
INFERENCE_LEVEL = {name: level for level, names in enumerate(INFERENCE) for name in names}
FILES = [p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py"]


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The modules that a file imports, by full name."""
    package = ["ppgen", *path.relative_to(ROOT).parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names} if module == "ppgen" else {module}
    return names


def test_every_file_has_its_layer():
    assert {part_of(p) for p in FILES} <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downward(path):
    own = part_of(path)
    for name in imported(path):
        if name == "ppgen.__version__" or not name.startswith("ppgen"):
            continue
        other = name.split(".")[1] if "." in name else ""
        if other and other != own and other in LEVEL:
            assert LEVEL[other] < LEVEL[own], f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "inference").glob("*/*.py")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_imports_within_inference_run_downward(path):
    own = path.parent.name
    for name in imported(path):
        if name.startswith("ppgen.inference"):
            _, _, *rest = name.split(".")
            assert rest, f"{path.name} imports the whole of ppgen.inference"
            assert rest[0] == own or INFERENCE_LEVEL[rest[0]] < INFERENCE_LEVEL[own], f"{path.name} imports {name}"


def test_the_two_halves_do_not_know_each_other():
    for half, other in (("models", "inference"), ("inference", "models")):
        for path in (ROOT / half).rglob("*.py"):
            assert not any(name.startswith(f"ppgen.{other}") for name in imported(path)), path


def test_pair_and_networks_know_only_what_they_build_on():
    outside = {n.split(".")[0] for n in imported(ROOT / "pair.py")} - set(sys.stdlib_module_names)
    assert outside == {"torch", "pyro"}
    for path in (ROOT / "nn").glob("*.py"):
        outside = {n.split(".")[0] for n in imported(path)} - set(sys.stdlib_module_names)
        assert outside <= {"torch", "ppgen"}, path


def test_importing_changes_nothing():
    code = """
import pyro, torch
from pyro.infer.util import is_validation_enabled
state = lambda: (is_validation_enabled(), torch.distributions.Distribution._validate_args,
                 torch.get_default_dtype(), torch.random.get_rng_state().sum().item(), len(pyro.get_param_store()))
before = state()
import ppgen, ppgen.cli
assert state() == before, (before, state())
import sys
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
