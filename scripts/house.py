"""Count the house: files, lines, modules with one importer, docstrings without a verb, import circles.

    python scripts/house.py [CHECKOUT]      of this checkout, or of another one

tests/test_layering.py holds the numbers that must be zero.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

#: Words that open a docstring which does not say what a function does.
NO_VERBS = set("what whether which how of those that the a an it its as from for no not if with without".split())
ROOT = Path(__file__).parents[1]


def modules(root: Path) -> dict[str, Path]:
    """Find the package's modules by their dotted names; `training/` is `simclr_hub.training`."""
    found = {}
    for folder, package in (("simclr_hub", "simclr_hub"), ("training", "simclr_hub.training")):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """List the package's modules that a module imports, also inside functions, but not for type checkers only."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            parts = {f"{module}.{alias.name}" for alias in node.names}
            found |= parts & known.keys() or {module}
    return (found & known.keys()) - {name}


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _nodes(node)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import one another, directly or through others."""
    reach: dict[str, set[str]] = {}
    for name in graph:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            new = graph.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        reach[name] = seen
    groups = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in graph}
    return sorted(list(group) for group in groups if len(group) > 1)


def without_verb(path: Path) -> list[str]:
    """List the functions and methods of a file whose docstring does not begin with a verb, as far as words tell."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (text := ast.get_docstring(node)):
            first = text.split()[0].strip("\"'`,.:;").lower()
            if first in NO_VERBS or not first.isalpha():
                found.append(f"{path.name}:{node.lineno} {node.name}: {text.splitlines()[0]}")
    return found


def main(root: Path) -> None:
    """Print the counts."""
    known = modules(root)
    graph = {name: imported(name, path, known) for name, path in known.items()}
    importers = {name: [other for other in graph if name in graph[other]] for name in known}
    single = [n for n, i in importers.items() if len(i) == 1 and not n.startswith("simclr_hub.cli.")]  # loaded by name
    texts = [path.read_text(encoding="utf-8") for path in known.values()]
    print(f"files                               {len(known):6}")
    print(f"lines                               {sum(text.count(chr(10)) for text in texts):6,}")
    print(f"longest file                        {max(text.count(chr(10)) for text in texts):6,}")
    print(f"modules with one importer           {len(single):6}")
    print(f"docstrings that open without a verb {sum(len(without_verb(path)) for path in known.values()):6}")
    print(f'"Unusual:" at a module\'s top        {sum("Unusual" in text for text in texts):6}')
    print(f"import circles                      {len(circles(graph)):6}")
    for group in circles(graph):
        print(f"  {', '.join(group)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT))
