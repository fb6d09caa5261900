"""A notebook's parameters, checked by its first cell: papermill itself goes on after a misspelt one."""

from __future__ import annotations

import ast
import dataclasses
import json
from contextlib import suppress
from typing import Any

from qartsr_lib.base.errors import QartsrError, did_you_mean
from qartsr_lib.study.profiles import Profile, get_profile

INJECTED = "# Parameters\n"  # how papermill begins the cell that it puts behind the notebook's own parameters
PREFIX = "PAPERMILL_"  # of those that --inject-paths adds
NEEDED = {bool: "true or false", int: "a whole number", list: "a list", dict: "a mapping"}
WORDS = ("true", "false", "yes", "no", "on", "off", "none", "null")


def check_parameters(names: dict[str, Any]) -> Profile:
    """The profile PROFILE with OVERRIDES, once all that papermill injected is what the notebook declares.

    Args:
        names: the notebook's globals(); `In` holds the source of each cell that was run.

    Raises:
        QartsrError: unknown name, profile or setting, or a value of another kind than the default.
    """
    cells = names.get("In", [])
    injected = [number for number, source in enumerate(cells) if source.startswith(INJECTED)]
    if injected:  # not in JupyterLab, where the notebook's own parameters are edited
        declared = {name: value for cell in cells[: injected[-1]] for name, value in _assigned(cell).items()}
        given = {name: names.get(name) for name in _assigned(cells[injected[-1]]) if not name.startswith(PREFIX)}
        problems = [_problem(name, value, declared) for name, value in given.items()] if declared else []
        if any(problems):
            raise QartsrError("; ".join(filter(None, problems)))
    return get_profile(names["PROFILE"], **names.get("OVERRIDES", {}))


def _assigned(source: str) -> dict[str, Any]:
    """{name: literal} that a cell assigns; what is no literal (float("nan"), or no parameter) stands as ... there."""
    found = {}
    with suppress(SyntaxError):
        for statement in ast.parse(source).body:
            if isinstance(statement, ast.Assign):
                target = ast.unparse(statement.targets[0])
                found[target] = ...
                with suppress(ValueError):
                    found[target] = ast.literal_eval(statement.value)
    return found


def _problem(name: str, value: Any, declared: dict[str, Any]) -> str | None:
    """What is wrong with a parameter; papermill makes texts of -p's lists, and of every switch but True and False."""
    if name not in declared:
        if "OVERRIDES" in declared and name.lower() in {field.name for field in dataclasses.fields(Profile)}:
            return f"unknown parameter {name}; it is a setting of the profile: -y 'OVERRIDES: {{{name.lower()}: ...}}'"
        return f"unknown parameter {name}; {did_you_mean(name, declared) or 'this notebook has ' + ', '.join(declared)}"
    default = declared[name]
    if isinstance(default, str):
        return f"parameter {name} is {value!r} and must be a text" if isinstance(value, (list, dict)) else None
    if isinstance(value, str) and (value.lstrip()[:1] in ("[", "{") or value.lower() in WORDS):
        meant = "null" if value.lower() == "none" else value
        return f"parameter {name} is the text {value!r}; write -y '{name}: {meant}'"
    if type(default) in NEEDED and type(value) is not type(default):
        example = json.dumps(default)
        return f"parameter {name} is {value!r} and must be {NEEDED[type(default)]}, such as -y '{name}: {example}'"
    return None
