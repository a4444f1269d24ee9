"""Which of the tests that a guard names are not there: a table of tests is worth nothing once one of them has gone."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tests.conftest import REPOSITORY


def missing_tests(names: Iterable[str]) -> set[str]:
    """Those of `learner/test_x.py::test_y`, below tests/unit, that no file defines."""
    return {name for name in names if name.partition("::")[2] not in _defined(name.partition("::")[0])}


@cache
def _defined(file: str) -> frozenset[str]:
    path: Path = REPOSITORY / "tests" / "unit" / file
    if not path.is_file():
        return frozenset()
    body = ast.parse(path.read_text()).body
    return frozenset(node.name for node in body if isinstance(node, ast.FunctionDef))
