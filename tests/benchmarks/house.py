"""`make house`: lines, modules, rooms, floors and imports of the library, today or at any revision.

    python -m tests.benchmarks.house            # the checkout
    python -m tests.benchmarks.house 8d2d968    # as it was

A room is a package or module directly in qartsr_lib. Every import counts, those inside functions and
the modules that strings name (registries, `python -m`) as well, because they run too.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
LIBRARY = "qartsr_lib"
#: From the ground up: a room imports from itself and from rooms before it.
ROOMS = (
    "base", "images", "quant", "backbones", "training", "methods",
    "deploy", "study", "show", "commands", "cli", "__main__",
)
COUNTED = (".py", ".cpp", ".h", ".js", ".css", ".j2")
_MODULE = re.compile(rf"{LIBRARY}(\.\w+)+")


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every Python module under root/qartsr_lib."""
    named = {}
    for path in sorted((root / LIBRARY).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imports(root: Path) -> dict[str, set[str]]:
    """Module -> the library's modules that it imports or names, itself left out."""
    known = modules(root)
    return {
        name: {target for target in map(lambda found: _nearest(found, known), _named(path)) if target} - {name}
        for name, path in known.items()
    }


def _named(path: Path) -> Iterable[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE.fullmatch(node.value):
            yield node.value


def _nearest(dotted: str, known: Mapping[str, Path]) -> str | None:
    """The module that `dotted` is or is a name of; None outside the library."""
    while dotted and dotted not in known:
        dotted = dotted.rpartition(".")[0]
    return dotted if dotted != LIBRARY else None


def room(module: str) -> str:
    """The room of a module: the part after qartsr_lib."""
    return module.split(".")[1] if "." in module else "__init__"


def backward(graph: Mapping[str, set[str]]) -> list[str]:
    """"a -> b" for every import that runs from a lower room to a higher one."""
    floor = {name: number for number, name in enumerate(ROOMS)}
    edges = ((source, target) for source, targets in graph.items() for target in targets)
    return sorted(f"{a} -> {b}" for a, b in edges if floor.get(room(a), -1) < floor.get(room(b), len(ROOMS)))


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's strongly connected components of two and more)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in number:
                visit(target)
            if target in stack:
                low[node] = min(low[node], low[target])
        if low[node] == number[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            found.append(sorted(group))

    for node in sorted(graph):
        if node not in number:
            visit(node)
    return [group for group in found if len(group) > 1]


def between_rooms(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Room -> rooms that it imports from."""
    rooms: dict[str, set[str]] = {}
    for source, targets in graph.items():
        rooms.setdefault(room(source), set()).update(room(target) for target in targets)
    return {name: targets - {name} for name, targets in rooms.items()}


def floors(rooms: Mapping[str, set[str]]) -> int:
    """Rooms on the longest way down; those of one circle share a floor."""
    group = {node: tuple(nodes) for nodes in circles(rooms) for node in nodes}
    below: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for node, targets in rooms.items():
        here = group.get(node, (node,))
        below.setdefault(here, set()).update({group.get(target, (target,)) for target in targets} - {here})

    def height(node: tuple[str, ...]) -> int:
        return 1 + max((height(target) for target in below.get(node, ())), default=0)

    return max(map(height, below))


def lines(root: Path) -> Counter[str]:
    """Suffix -> lines of all files of the library that count as source."""
    counted: Counter[str] = Counter()
    for path in (root / LIBRARY).rglob("*"):
        if path.suffix in COUNTED:
            counted[path.suffix] += len(path.read_text(encoding="utf-8").splitlines())
    return counted


def lines_by_room(root: Path) -> Counter[str]:
    """Room -> its lines of source."""
    counted: Counter[str] = Counter()
    for path in (root / LIBRARY).rglob("*"):
        if path.suffix in COUNTED:
            first = path.relative_to(root / LIBRARY).parts[0]
            counted[first.removesuffix(".py")] += len(path.read_text(encoding="utf-8").splitlines())
    return counted


def largest_package(root: Path) -> tuple[int, str]:
    """Modules in the package that has most, and its name."""
    return max(Counter(path.parent.relative_to(root).as_posix() for path in modules(root).values()).items(),
               key=lambda item: item[1])[::-1]


def describe(root: Path) -> str:
    """What the command prints."""
    graph, counted = imports(root), lines(root)
    rooms = between_rooms(graph)
    crossing = sum(room(a) != room(b) for a, targets in graph.items() for b in targets)
    most, package = largest_package(root)
    rows = [
        f"lines            {sum(counted.values())} ({', '.join(f'{n} {s}' for s, n in counted.most_common())})",
        f"modules          {len(graph)}, at most {most} in one package ({package})",
        f"at the top       {len(list((root / LIBRARY).glob('*.py')))} modules, {len(_packages(root))} packages",
        f"rooms            {len(rooms) - ('__init__' in rooms)}, on {floors(rooms)} floors",
        f"imports          {sum(map(len, graph.values()))}, {crossing} between rooms, {len(backward(graph))} run back",
        f"circles          {len(circles(graph))} of modules, {len(circles(rooms))} of rooms",
        "lines by room    " + ", ".join(f"{name} {number}" for name, number in lines_by_room(root).most_common(12)),
    ]
    return "\n".join(rows)


def _packages(root: Path) -> list[Path]:
    return [path for path in (root / LIBRARY).iterdir() if any(path.glob("*.py"))]


def main() -> None:
    """Describe the checkout, or the revision that is named."""
    if len(sys.argv) < 2:
        print(describe(CHECKOUT))
        return
    with tempfile.TemporaryDirectory() as folder:
        command = ["git", "-C", str(CHECKOUT), "archive", "--output", f"{folder}/then.tar", sys.argv[1], LIBRARY]
        if subprocess.run(command).returncode:
            raise SystemExit(f"{sys.argv[1]}: no revision of this checkout")
        with tarfile.open(f"{folder}/then.tar") as archive:
            archive.extractall(folder, filter="data")
        print(describe(Path(folder)))


if __name__ == "__main__":
    main()
