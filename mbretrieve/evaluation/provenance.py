"""What a result says of where its figures were made: versions, machine, memory. No path, no name of a user."""

import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mbretrieve.cores import usable_cores

_PACKAGES = (
    "mbretrieve",
    "torch",
    "numpy",
    "faiss-cpu",
    "tokenizers",
    "beir",
    "datasets",
    "bm25s",
    "PyStemmer",
    "transformers",
    "sentence-transformers",
    "flash-attn",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that have a part in a figure; those installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return the processor, how many cores this process may use, and how many threads it was told to use."""
    cores = usable_cores()
    told = os.environ.get("OMP_NUM_THREADS", "")
    return {"processor": _processor(), "cores": cores, "threads": int(told) if told.isdigit() else cores}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def forget_peak_memory() -> None:
    """Count peak memory from now on, where the system can: Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5): sets VmHWM back to what is resident now
    except OSError:
        return


def peak_memory() -> int:
    """Return the most bytes that were resident since `forget_peak_memory`, or since the process began."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes
