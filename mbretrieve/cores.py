"""How many cores this process may use: those that the system lets it run on, and no more than its quota pays for."""

import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_ROOT = Path("/")
_THREADS = "OMP_NUM_THREADS"
_TOLD = (_THREADS, "MKL_NUM_THREADS")
_held: set[str] = set()


def usable_cores() -> int:
    """Return how many cores this process may keep busy, at least 1; all there are, where the system does not say.

    A container's share of a large machine is mostly a quota: it sees all cores, and is stopped for the rest of each
    period once its threads have used up what it is given.
    """
    quota, cores = _quota(_ROOT), len(_affinity())
    return cores if quota is None else min(quota, cores)


def hold_to_quota() -> None:
    """Have torch, faiss and numpy start no more threads than the quota pays for: before they are imported.

    Nothing is done where the number was told, or would not be lower than torch's own choice.
    """
    # A core's second hardware thread is none of torch's: MKL takes one a core.
    if "torch" in sys.modules or any(name in os.environ for name in _TOLD):
        return
    cores = usable_cores()
    if cores < len(_affinity()) and cores < _physical(_ROOT, _affinity()):
        os.environ[_THREADS] = str(cores)
        _held.add(_THREADS)


def told_environment() -> dict[str, str]:
    """Return the environment for a process that is to count threads itself: without what ``hold_to_quota`` put in."""
    return {name: value for name, value in os.environ.items() if name not in _held}


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _physical(root: Path, cpus: set[int]) -> int:
    """Return how many cores there are behind hardware threads; one each, where the system does not say."""
    return len({_read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list") or str(cpu) for cpu in cpus})


@cache
def _quota(root: Path) -> int | None:
    """Return the least quota of the control groups that this process is in, in whole cores; None without any."""
    quotas = [quota for folder in _groups(root) for quota in (_unified(folder), _legacy(folder)) if quota is not None]
    return max(1, min(-(-used // period) for used, period in quotas)) if quotas else None


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's groups and their parents, where there are such: see cgroups(7).

    A container's own group may be called by its name on the host and yet be found at the root of what is mounted: what
    is not there is passed over.
    """
    mounted = root / "sys/fs/cgroup"
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        steps = [step for step in path.split("/") if step not in ("", "..")]
        for hierarchy in (controllers, "cpu") if controllers else ("", "unified"):
            for depth in range(len(steps), -1, -1):
                yield mounted.joinpath(hierarchy, *steps[:depth])


def _unified(folder: Path) -> tuple[int, int] | None:
    """Read version 2's ``cpu.max``: the microseconds that may be used of each period, or ``max``, and the period."""
    used, _, period = (_read(folder / "cpu.max") or "max").partition(" ")
    return (int(used), int(period)) if used.isdigit() and period.isdigit() and int(period) else None


def _legacy(folder: Path) -> tuple[int, int] | None:
    """Read version 1's two files; -1 is no quota."""
    used, period = (_read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
    return (int(used), int(period)) if used.isdigit() and period.isdigit() and int(period) else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip()
    except (OSError, ValueError):
        return None
