"""What tests of the index share: each that asks for ``kernels`` is run with them and without; each that asks for
``every_kernel`` with kernels for older processors, too."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mbretrieve.compiled import COMPILERS
from mbretrieve.index.kernels import KERNELS
from tests.processors import PROCESSORS, built_for


@pytest.fixture(scope="session")
def kernel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@contextmanager
def having(processor: str | None, folder: Path) -> Iterator[bool]:
    """Build the index's kernels for a processor, or do without any."""
    with pytest.MonkeyPatch.context() as patch:
        if processor is not None:
            built_for(patch, KERNELS, processor)
        patch.setenv("MBRETRIEVE_CACHE", str(folder))
        patch.setenv("MBRETRIEVE_COMPILE", str(int(processor is not None)))
        KERNELS.forget()
        if processor is not None and not any(map(shutil.which, COMPILERS)):
            pytest.skip("this machine has no compiler")
        assert (KERNELS.get(build=True) is not None) == (processor is not None)
        yield processor is not None
    KERNELS.forget()


@pytest.fixture(scope="module", params=["native", None])
def kernels(request: pytest.FixtureRequest, kernel_folder: Path) -> Iterator[bool]:
    with having(request.param, kernel_folder) as built:
        yield built


@pytest.fixture(scope="module", params=[*PROCESSORS, None])
def every_kernel(request: pytest.FixtureRequest, kernel_folder: Path) -> Iterator[bool]:
    with having(request.param, kernel_folder) as built:
        yield built
