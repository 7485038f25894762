"""scripts/bench/faults_report.py lists tests that exist."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_listed_tests_exist():
    program = [sys.executable, str(ROOT / "scripts/bench/faults_report.py"), "--tests"]
    campaign, *nodes = subprocess.run(program, capture_output=True, text=True, check=True).stdout.splitlines()
    assert (ROOT / campaign).is_file()
    assert len(nodes) > 40
    for node in nodes:
        file, _, name = node.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {part.name for part in tree.body if isinstance(part, ast.FunctionDef)}, node
