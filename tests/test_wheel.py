"""The built wheel: only ``mbretrieve`` at its top, the bundled model inside, and usable where the source is not."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_only_the_package_stands_at_the_top(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"mbretrieve"}
    assert "mbretrieve/assets/mini-v3/model.safetensors" in names
    assert "mbretrieve/assets/mini-v3/README.md" in names
    compiled_where_they_run = {f"mbretrieve/{name}.cpp" for name in ("models/amx", "scoring/codes", "index/kernels")}
    assert compiled_where_they_run | {"mbretrieve/team.h"} <= set(names)
    assert "mbretrieve/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_installed_wheel_indexes_and_searches(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("# Bread\n\nKnead the dough, let it rise, bake it.\n")
    environment = os.environ | {"PYTHONPATH": str(site), "MBRETRIEVE_CACHE": str(tmp_path / "cache")}
    check = "import mbretrieve; print(mbretrieve.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", check], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert Path(found.stdout.strip()).is_relative_to(site)
    run = [sys.executable, "-m", "mbretrieve"]
    subprocess.run([*run, "index", "notes"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    answer = subprocess.run(
        [*run, "search", "how to make a loaf", "notes"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "a.md" in answer.stdout
