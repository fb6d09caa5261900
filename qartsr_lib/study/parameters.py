"""The parameters that papermill was given, checked by each notebook: papermill itself goes on after a misspelt one."""

from __future__ import annotations

import ast
import difflib
import json
from typing import Any

from qartsr_lib.base.errors import QartsrError
from qartsr_lib.study.profiles import get_profile

INJECTED = "# Parameters\n"  # how papermill begins the cell that it puts behind the notebook's own parameters
PREFIX = "PAPERMILL_"  # of those that --inject-paths adds
NEEDED = {bool: "true or false", int: "a whole number", list: "a list", dict: "a mapping"}
WORDS = ("true", "false", "yes", "no", "on", "off", "none", "null")


def check_parameters(names: dict[str, Any]) -> None:
    """Compare what papermill injected with the parameters that the notebook declares, and PROFILE with the profiles.

    Args:
        names: the notebook's globals(); `In` holds the source of each cell that was run.

    Raises:
        QartsrError: unknown name or profile, or a value of another kind than the default.
    """
    cells = names.get("In", [])
    injected = [number for number, source in enumerate(cells) if source.startswith(INJECTED)]
    if injected:  # not in JupyterLab, where the notebook's own parameters are edited
        declared = {name: value for cell in cells[: injected[-1]] for name, value in _assigned(cell).items()}
        check_values(declared, {name: names.get(name) for name in _assigned(cells[injected[-1]])})
    get_profile(names["PROFILE"])


def check_values(declared: dict[str, Any], given: dict[str, Any]) -> None:
    """The same for {name: default} and {name: value}; a default that is no literal stands as ... there."""
    given = {name: value for name, value in given.items() if not name.startswith(PREFIX)}
    unknown = [name for name in given if name not in declared]
    if declared and unknown:
        raise QartsrError("; ".join(_unknown(name, declared) for name in unknown))
    wrong = [_wrong(name, declared[name], value) for name, value in given.items() if name in declared]
    if any(wrong):
        raise QartsrError("; ".join(filter(None, wrong)))


def _assigned(source: str) -> dict[str, Any]:
    """{name: literal} that a cell assigns."""
    found = {}
    try:
        statements = ast.parse(source).body
    except SyntaxError:
        return {}
    for statement in statements:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            try:
                found[ast.unparse(target)] = ast.literal_eval(statement.value)
            except ValueError:  # float("nan"), or no parameter
                found[ast.unparse(target)] = ...
    return found


def _unknown(name: str, declared: dict[str, Any]) -> str:
    near = difflib.get_close_matches(name.upper(), declared, n=3)
    known = f"did you mean {' or '.join(near)}?" if near else f"this notebook has {', '.join(declared)}"
    return f"unknown parameter {name}; {known}"


def _wrong(name: str, default: Any, value: Any) -> str | None:
    """What is wrong with `value`; papermill makes texts of -p's lists, and of every switch but True and False."""
    if isinstance(default, str):
        return f"parameter {name} is {value!r} and must be a text" if isinstance(value, (list, dict)) else None
    if isinstance(value, str) and (value.lstrip()[:1] in ("[", "{") or value.lower() in WORDS):
        meant = "null" if value.lower() == "none" else value
        return f"parameter {name} is the text {value!r}; write -y '{name}: {meant}'"
    if type(default) in NEEDED and type(value) is not type(default):
        example = json.dumps(default)
        return f"parameter {name} is {value!r} and must be {NEEDED[type(default)]}, such as -y '{name}: {example}'"
    return None
