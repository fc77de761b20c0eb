"""A file of which one block of a group is damaged is restored bit for bit; with two it is left as it is."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbretrieve.index import files, parity
from mbretrieve.index.files import MappedFolder, StoredFile, describe, restore

BLOCK = 64
GROUP = 4

sizes = st.builds(lambda blocks, more: max(0, BLOCK * blocks + more), st.integers(0, 20), st.integers(-2, 2))


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK", BLOCK)
        patch.setattr(parity, "GROUP", GROUP)
        yield


def written(folder: str, size: int) -> tuple[Path, StoredFile, bytes]:
    content = np.random.default_rng(size).bytes(size)
    path = Path(folder) / "codes.npy"
    path.write_bytes(content)
    return path, describe(path), content


def harm(path: Path, blocks: set[int], how: str) -> None:
    content = bytearray(path.read_bytes())
    for block in blocks:
        place = slice(BLOCK * block, min(BLOCK * (block + 1), len(content)))
        if how == "flip":
            content[place.stop - 1] ^= 1
        elif how == "zero":
            content[place] = bytes(place.stop - place.start)
    path.write_bytes(content)


@settings(max_examples=300, deadline=None)
@given(size=sizes.filter(bool), how=st.sampled_from(["flip", "zero"]), data=st.data())
def test_any_one_block_of_each_group_is_restored(size: int, how: str, data: st.DataObject) -> None:
    blocks = -(-size // BLOCK)
    groups = -(-blocks // GROUP)
    harmed = {data.draw(st.sampled_from(range(group, blocks, groups))) for group in range(groups)}
    with tempfile.TemporaryDirectory() as folder:
        path, file, content = written(folder, size)
        assert len(file.parity) == groups * min(size, BLOCK)
        harm(path, harmed, how)
        assert list(MappedFolder(Path(folder), [file]).problems())
        assert restore(Path(folder), file)
        assert path.read_bytes() == content
        assert [path] == list(Path(folder).iterdir())


@settings(max_examples=100, deadline=None)
@given(size=sizes.filter(bool), data=st.data())
def test_a_file_cut_short_longer_or_gone_is_restored_while_a_group_lacks_one_block(
    size: int, data: st.DataObject
) -> None:
    blocks = -(-size // BLOCK)
    with tempfile.TemporaryDirectory() as folder:
        path, file, content = written(folder, size)
        left = data.draw(st.one_of(st.none(), st.integers(0, size - 1), st.integers(size + 1, size + 2 * BLOCK)))
        path.unlink() if left is None else path.write_bytes((content + bytes(2 * BLOCK))[:left])
        whole = min(size, left or 0) // BLOCK if (left or 0) < size else blocks
        groups = -(-blocks // GROUP)
        assert restore(Path(folder), file) == (blocks - whole <= groups)
        assert (path.exists() and path.read_bytes() == content) == (blocks - whole <= groups)


@settings(max_examples=100, deadline=None)
@given(size=sizes.filter(lambda size: size > 2 * BLOCK), data=st.data())
def test_of_two_blocks_of_a_group_neither_is_restored_and_the_file_is_left(size: int, data: st.DataObject) -> None:
    blocks = -(-size // BLOCK)
    groups = -(-blocks // GROUP)
    first = data.draw(st.integers(0, blocks - groups - 1))
    second = data.draw(st.sampled_from(range(first + groups, blocks, groups)))
    with tempfile.TemporaryDirectory() as folder:
        path, file, _ = written(folder, size)
        harm(path, {first, second}, "flip")
        harmed = path.read_bytes()
        assert not restore(Path(folder), file)
        assert path.read_bytes() == harmed
        assert [path] == list(Path(folder).iterdir())


def test_a_parity_that_was_changed_restores_nothing() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, file, _ = written(folder, 10 * BLOCK)
        harm(path, {3}, "flip")
        for changed in (file.parity[:-1], bytes(len(file.parity))):
            assert not restore(Path(folder), StoredFile(file.name, file.size, file.checksums, changed))


def test_what_is_wrong_with_each_file_is_said_and_which_bytes(tmp_path: Path) -> None:
    stored = []
    for name, size in (("a", 100), ("b", 1000), ("c", 10), ("d", 70), ("e", 70)):
        (tmp_path / name).write_bytes(np.random.default_rng(size).bytes(size))
        stored.append(describe(tmp_path / name))
    harm(tmp_path / "a", {1}, "flip")
    harm(tmp_path / "b", {2, 3, 9}, "zero")
    (tmp_path / "c").unlink()
    (tmp_path / "d").write_bytes(b"")
    said = list(MappedFolder(tmp_path, stored).problems())
    advice = "; run `mbretrieve repair`, restore it from a copy, or index again"
    assert said == [
        f"{tmp_path}/a is damaged: bytes 64 to 100 were changed{advice}",
        f"{tmp_path}/b is damaged: bytes 128 to 192 were changed, and 2 more blocks{advice}",
        f"{tmp_path}/c is missing",
        f"{tmp_path}/d is damaged: it has 0 bytes, not 70{advice}",
    ]
