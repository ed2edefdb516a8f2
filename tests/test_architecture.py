"""Import rules, checked in the source: packages form layers, and each imports only lower layers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "realcustom_jax"

# From bottom to top; names in one line do not import each other.
LAYERS = (
    {"common"},
    {"models"},
    {"diffusion"},
    {"options"},
    {"weights"},
    {"inputs"},
    {"outputs"},
    {"pipeline"},
    {"generate"},
    {"data"},
    {"toybox"},
    {"training", "evaluation", "story", "inspection"},
    {"train", "sample", "evaluate", "convert", "export", "aot", "studio"},
)
COMMANDS = {"train", "sample", "evaluate", "convert", "export"}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
    if path != ROOT / "__init__.py"
}


def imported(path: Path) -> set[str]:
    """Our modules, such as "models.unet", that a file imports at run time, not only for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inner if name.removeprefix("realcustom_jax.") in MODULES} or {
                node.module
            }
    return {name.removeprefix("realcustom_jax.") for name in found if name.startswith("realcustom_jax.")}


def of_package(module: str) -> str:
    return module.split(".")[0]


def test_every_module_has_a_layer():
    """The root contains the commands and three modules, nothing else."""
    assert {of_package(module) for module in MODULES} == set(LEVEL)
    assert {path.stem for path in ROOT.glob("*.py")} == COMMANDS | {
        "__init__",
        "pipeline",
        "generate",
        "options",
    }


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_only_lower_layers(module):
    """`toybox.demo` is a command inside a package: it may use the public API."""
    above = {
        other
        for other in imported(MODULES[module])
        if of_package(other) != of_package(module) and LEVEL[of_package(other)] >= LEVEL[of_package(module)]
    }
    assert not above


def test_modules_have_no_circular_imports():
    below = {module: imported(path) & MODULES.keys() for module, path in MODULES.items()}
    while ends := {module for module, others in below.items() if not others & below.keys()}:
        below = {module: others for module, others in below.items() if module not in ends}
    assert not below, f"in a circle, or above one: {sorted(below)}"


def test_inputs_do_not_import_data_or_training():
    names = {of_package(other) for module in MODULES if of_package(module) == "inputs"
             for other in imported(MODULES[module])}  # fmt: skip
    assert names and not names & {"data", "training", "evaluation", "toybox", "generate", "pipeline"}


@pytest.mark.parametrize("module", ["training.examples", "data.buckets", "data.prepare.run_parts"])
def test_loader_workers_do_not_import_jax(module):
    """Our modules for workers do not need it; grain, which starts the workers, imports it for itself."""
    code = f"import sys, realcustom_jax.{module}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
