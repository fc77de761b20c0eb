"""What tests of the index share: each that asks for ``kernels`` is run with them and without."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mbretrieve.compiled import COMPILERS
from mbretrieve.index.kernels import KERNELS


@pytest.fixture(scope="session")
def kernel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module", params=[True, False], ids=["kernels", "none"])
def kernels(request: pytest.FixtureRequest, kernel_folder: Path) -> Iterator[bool]:
    """Build the index's kernels, or do without any."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MBRETRIEVE_CACHE", str(kernel_folder))
        patch.setenv("MBRETRIEVE_COMPILE", str(int(request.param)))
        KERNELS.forget()
        if request.param and not any(map(shutil.which, COMPILERS)):
            pytest.skip("this machine has no compiler")
        assert (KERNELS.get(build=True) is not None) == request.param
        yield request.param
    KERNELS.forget()
