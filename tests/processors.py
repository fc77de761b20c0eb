"""Older processors than this machine's, for which kernels can be built and run here."""

import platform

import pytest

from mbretrieve.compiled import Compiled

PROCESSORS = ["native"]
if platform.machine() == "x86_64":
    PROCESSORS += ["haswell", "x86-64-v2", "x86-64"]  # AVX2 and F16C; SSSE3; neither


def built_for(patch: pytest.MonkeyPatch, kernel: Compiled, processor: str) -> None:
    """Let a kernel be built for another processor than this machine's."""
    options = [f"-march={processor}" if option == "-march=native" else option for option in kernel._options]
    patch.setattr(kernel, "_options", options)
