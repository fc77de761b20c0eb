"""How many cores a process may use, read from made-up system folders, and what the command line makes of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mbretrieve import cores


@pytest.fixture(autouse=True)
def four(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that may run on four cores, of a machine of which nothing else is known."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5}, raising=False)
    monkeypatch.setattr(cores, "_ROOT", tmp_path)


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


GROUP = "sys/fs/cgroup"
V1 = "4:memory:/pod/own\n3:cpu,cpuacct:/pod/own\n0::/pod/own"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4),
        ({"proc/self/cgroup": "0::/"}, 4),
        ({"proc/self/cgroup": "0::/", f"{GROUP}/cpu.max": "max 100000"}, 4),
        ({"proc/self/cgroup": "0::/", f"{GROUP}/cpu.max": "200000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", f"{GROUP}/cpu.max": "210000 100000"}, 3),
        ({"proc/self/cgroup": "0::/", f"{GROUP}/cpu.max": "5000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", f"{GROUP}/cpu.max": "900000 100000"}, 4),
        ({"proc/self/cgroup": "0::/", f"{GROUP}/cpu.max": "900000"}, 4),
        ({"proc/self/cgroup": "0::/", f"{GROUP}/cpu.max": "50000 0"}, 4),
        # Of the own group and its parents the least counts, wherever it is.
        (
            {
                "proc/self/cgroup": "0::/a/b",
                f"{GROUP}/a/cpu.max": "100000 100000",
                f"{GROUP}/a/b/cpu.max": "max 100000",
            },
            1,
        ),
        ({"proc/self/cgroup": "0::/a/b", f"{GROUP}/a/cpu.max": "max 50000", f"{GROUP}/a/b/cpu.max": "100000 50000"}, 2),
        ({"proc/self/cgroup": "0::/a", f"{GROUP}/a/b/cpu.max": "1000 50000"}, 4),
        # A container that sees its own group as the root, though it is told the name that the host has for it.
        ({"proc/self/cgroup": "0::/../../docker/x", f"{GROUP}/cpu.max": "300000 100000"}, 3),
        ({"proc/self/cgroup": V1}, 4),
        ({"proc/self/cgroup": V1, f"{GROUP}/cpu/pod/cpu.cfs_quota_us": "-1"}, 4),
        (
            {
                "proc/self/cgroup": V1,
                f"{GROUP}/cpu,cpuacct/pod/cpu.cfs_quota_us": "150000",
                f"{GROUP}/cpu,cpuacct/pod/cpu.cfs_period_us": "100000",
                f"{GROUP}/cpu,cpuacct/pod/own/cpu.cfs_quota_us": "-1",
                f"{GROUP}/cpu,cpuacct/pod/own/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": V1,
                f"{GROUP}/cpu/cpu.cfs_quota_us": "100000",
                f"{GROUP}/cpu/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        ({"proc/self/cgroup": V1, f"{GROUP}/unified/pod/own/cpu.max": "300000 100000"}, 3),
        # Of another controller, and in a file that is none of ours to read.
        ({"proc/self/cgroup": V1, f"{GROUP}/memory/pod/own/cpu.max": "100000 100000"}, 4),
        ({"proc/self/cgroup": "0::/", f"{GROUP}/cpu.max/x": ""}, 4),
    ],
)
def test_the_least_of_affinity_and_quotas_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    put(tmp_path, files)
    assert cores.usable_cores() == expected


def test_a_system_without_affinity_has_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores.usable_cores() == os.cpu_count()


COMMAND = """
import os, sys
from pathlib import Path
os.sched_getaffinity = lambda _: {0, 1, 2, 5}
from mbretrieve import cores
cores._ROOT = Path(sys.argv[1])
from mbretrieve.cli import main
assert main(["--help"]) == 0
print("said", os.environ.get("OMP_NUM_THREADS"), cores.told_environment().get("OMP_NUM_THREADS"))
import torch
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("quota", "told", "siblings", "expected"),
    [
        ("200000 100000", {}, {}, ["2 None", "2"]),
        ("200000 100000", {"OMP_NUM_THREADS": "1"}, {}, ["1 1", "1"]),
        ("200000 100000", {"MKL_NUM_THREADS": "1"}, {}, ["None None"]),
        ("max 100000", {}, {}, ["None None"]),
        ("400000 100000", {}, {}, ["None None"]),
        # Two cores of two hardware threads: torch has two threads by itself.
        ("300000 100000", {}, {0: "0-1", 1: "0-1", 2: "2,5", 5: "2,5"}, ["None None"]),
        ("100000 100000", {}, {0: "0-1", 1: "0-1", 2: "2,5", 5: "2,5"}, ["1 None", "1"]),
    ],
)
def test_the_command_line_starts_no_more_threads_than_the_quota_pays_for(
    tmp_path: Path, quota: str, told: dict[str, str], siblings: dict[int, str], expected: list[str]
) -> None:
    put(tmp_path, {"proc/self/cgroup": "0::/", f"{GROUP}/cpu.max": quota})
    topology = "sys/devices/system/cpu/cpu{}/topology/core_cpus_list"
    put(tmp_path, {topology.format(cpu): text for cpu, text in siblings.items()})
    environment = {name: value for name, value in os.environ.items() if name not in cores._TOLD} | told
    command = [sys.executable, "-c", COMMAND, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    said = done.stdout.partition("said ")[2].splitlines()
    assert said[: len(expected)] == expected


def test_a_torch_that_is_there_keeps_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, {"proc/self/cgroup": "0::/", f"{GROUP}/cpu.max": "100000 100000"})
    for name in cores._TOLD:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", object())
    cores.hold_to_quota()
    assert "OMP_NUM_THREADS" not in os.environ
