"""What every result says of where it was measured: the machine, the versions and the command."""

import json
import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def processor() -> str:
    """Return the processor's name and the number formats that matter here, as the system tells them."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    known = set(fields.get("flags", "").split())
    formats = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in known]
    return f"{fields.get('model name', platform.machine())} ({', '.join(formats)})"


def provenance(*packages: str) -> dict[str, Any]:
    """Return machine, versions of Python, mbretrieve and ``packages``, and the command, its paths cut short."""
    versions = {"python": platform.python_version()}
    for package in ("mbretrieve", *packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    words = [Path(word).name if os.sep in word else word for word in sys.argv]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory)},
        "versions": versions,
        "command": shlex.join(["python", f"eval/bench/{words[0]}", *words[1:]]),
    }


def write(result: dict[str, Any], path: Path | None) -> None:
    """Print a result as JSON, and write it where asked."""
    text = json.dumps(result, indent=1) + "\n"
    print(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
