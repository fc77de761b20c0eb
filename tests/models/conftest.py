"""The kernel that this machine's compiler builds, for the tests that need it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mbretrieve.compiled import COMPILERS
from mbretrieve.models import amx


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new folder that the kernel is built into once."""
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def kernel(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Build the kernel, or find it where it has been built."""
    amx.KERNEL.forget()
    monkeypatch.setenv("MBRETRIEVE_CACHE", str(kernels))
    monkeypatch.delenv("MBRETRIEVE_COMPILE", raising=False)
    if not amx.has_amx() or not any(map(shutil.which, COMPILERS)):
        pytest.skip("this machine has no AMX, or no compiler")
    assert amx.KERNEL.get(build=True) is not None
    yield
    amx.KERNEL.forget()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder without a kernel."""
    amx.KERNEL.forget()
    monkeypatch.setenv("MBRETRIEVE_CACHE", str(tmp_path))
    yield tmp_path
    amx.KERNEL.forget()
