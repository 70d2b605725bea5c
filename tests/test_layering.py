"""No arrow runs backwards: what each part may import (docs/architecture.md)."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import house
import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "simclr_hub").rglob("*.py"))
TRAVELLING = (
    "configuration_simclr",
    "modeling_simclr",
    "image_processing_simclr",
    "model_folder",
    "pixels",
    "headers",
)
ALLOWED = {"torch", "torchvision", "transformers", "huggingface_hub", "numpy", "PIL"} | set(sys.stdlib_module_names)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every import of a file, also inside functions, with its absolute name and line."""
    package = ["simclr_hub", *path.relative_to(ROOT / "simclr_hub").parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module, node.lineno
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def test_the_library_never_imports_training_except_in_the_command_line() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in LIBRARY
        if path.parent.name != "cli"
        for name, line in imports(path)
        if f"{name}.".startswith(("simclr_hub.training.", "training."))
    ]
    assert not found


@pytest.mark.parametrize("name", TRAVELLING)
def test_files_that_travel_as_remote_code_import_only_what_is_there(name: str) -> None:
    path = ROOT / "simclr_hub" / f"{name}.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= ALLOWED, f"line {node.lineno}"
        elif isinstance(node, ast.ImportFrom) and node.level:
            # transformers finds relative imports by a regular expression that knows this form alone.
            assert node.level == 1 and node.module in TRAVELLING, f"line {node.lineno}"
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] in ALLOWED, f"line {node.lineno}"


def test_importing_training_from_the_root_names_its_installed_name() -> None:
    run = subprocess.run([sys.executable, "-c", "import training"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ") and "simclr_hub.training" in last


def test_no_modules_import_one_another_in_a_circle() -> None:
    known = house.modules(ROOT)
    graph = {name: house.imported(name, path, known) for name, path in known.items()}
    assert house.circles(graph) == []
    pair = {"a": {"b"}, "b": {"c"}, "c": {"b", "a"}, "d": {"a"}}  # what a circle looks like
    assert house.circles(pair) == [["a", "b", "c"]]


def test_docstrings_begin_with_a_verb() -> None:
    others = [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    assert [line for path in (*house.modules(ROOT).values(), *others) for line in house.without_verb(path)] == []


def test_the_architecture_page_names_every_module_and_its_answers_are_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page.split("```")[1]
    for path in house.modules(ROOT).values():
        if path.parent.name not in ("cli", "duplicates") and path.name != "__init__.py":  # rooms named as one
            assert path.name in tree or path.stem.endswith("_simclr"), path
    for name in re.findall(r"^\| [^|]+\? \| `([^`]+)`", page, re.MULTILINE):
        assert "/" not in name or (ROOT / name).exists(), name
