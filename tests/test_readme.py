"""The README's and the tutorial's Python runs, and says what it should."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ciphermq.cli.processes import Stage, free_port

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("page", "printed"),
    [("README.md", "alice says for Bob's eyes only\n"), ("docs/tutorial/first-queue.md", "")],
)
def test_the_python_of_the_page_runs(page: str, printed: str, tmp_path: Path) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)
    with Stage(tmp_path / "stage", ["alice", "bob"], port=free_port()) as stage:
        stage.broker()
        stage.register("bob")
        made = subprocess.run(
            [sys.executable, "-c", program],
            env={"CIPHERMQ_HOME": str(stage.deployment.home), "PATH": ""},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert made.stderr == ""
    assert made.stdout == printed
