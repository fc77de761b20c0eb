"""What tests count is told at the end of a run, as ``make test`` runs them: quietly, in several processes."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def test_counts_are_told_by_a_quiet_run_in_several_processes(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('name', ['a', 'b'])\n"
        "def test_it(name, counted):\n    counted(f'{name} of 7 steps')\n"
    )
    for several in ([], ["-n", "2"]):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *several,
            "--rootdir",
            tmp_path,
            tmp_path,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        assert "test_it[a]: a of 7 steps\ntest_it[b]: b of 7 steps\n" in done.stdout
