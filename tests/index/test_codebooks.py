"""codebooks.py: what rotation, codes and training promise, on tokens in clusters as those of a model are."""

from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mbretrieve.errors import IndexFormatError
from mbretrieve.index import kmeans
from mbretrieve.index.codebooks import Codebook, assignment_dtype, load_codebook, save_codebook, train_codebook
from mbretrieve.index.kmeans import nearest, train_centroids

BITS = [1, 2, 4, 8]
DIMS = [1, 3, 48, 100, 128, 130]


def tokens(count: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors around some centres, with variances that fall from dimension to dimension."""
    centres = np.random.default_rng(7).standard_normal((50, dim))
    random = np.random.default_rng(seed)
    spread = 0.6 * 0.97 ** np.arange(dim)
    rows = centres[random.integers(50, size=count)] + random.standard_normal((count, dim)) * spread
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def compressed(codebook: Codebook, rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    rotated = codebook.rotate(rows)
    assignments = codebook.assign(rotated)
    codes = codebook.encode(rotated, assignments)
    return codebook.restore(codebook.decode(assignments, codes)), codebook.squared_error(rotated, assignments, codes)


@pytest.fixture(scope="module")
def trained() -> dict[int, Codebook]:
    return {bits: train_codebook(tokens(24_000, 48), 64, bits) for bits in BITS}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("count", [1, 2, 40, 300])
def test_any_sample_makes_a_codebook_of_the_promised_shapes(bits: int, dim: int, count: int) -> None:
    rows = tokens(count, dim)
    codebook = train_codebook(rows, 64, bits)
    padded = -(-dim // 8) * 8
    assert (codebook.bits, codebook.dim, codebook.padded) == (bits, dim, padded)
    assert codebook.centroids.shape == (min(64, count), padded)
    assert codebook.products.shape == (padded // 4, 16, 4)
    assert codebook.code_size == padded * bits // 8 + 1
    for array in (codebook.rotation, codebook.centroids, codebook.residuals, codebook.products):
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
    rotated = codebook.rotate(rows)
    assignments = codebook.assign(rotated)
    codes, packed = codebook.encode(rotated, assignments), codebook.pack_products(rotated, assignments)
    assert (rotated.dtype, codes.dtype, packed.dtype) == (np.float32, np.uint8, np.uint8)
    assert codes.shape == (count, codebook.code_size)
    assert packed.shape == (count, padded // 8)
    if count <= 64:  # every token has a centroid of its own
        np.testing.assert_allclose(compressed(codebook, rows)[0], rows, atol=1e-3)
    assert compressed(codebook, rows)[1] == pytest.approx(codebook.error, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("dim", DIMS)
def test_a_rotation_keeps_inner_products(dim: int) -> None:
    codebook = train_codebook(tokens(2000, dim), 16, 2)
    np.testing.assert_allclose(codebook.rotation @ codebook.rotation.T, np.eye(dim), atol=1e-5)
    a, b = tokens(20, dim, seed=1), tokens(30, dim, seed=2)
    np.testing.assert_allclose(codebook.rotate(a) @ codebook.rotate(b).T, a @ b.T, atol=1e-5)
    np.testing.assert_allclose(codebook.restore(codebook.rotate(a)), a, atol=1e-5)


def test_more_bits_err_less_and_all_err_less_than_centroids_alone(trained: dict[int, Codebook]) -> None:
    rows = tokens(2000, 48, seed=3)
    errors = [compressed(trained[bits], rows)[1] for bits in BITS]
    rotated = trained[1].rotate(rows)
    alone = float(np.square(rotated - trained[1].centroids[trained[1].assign(rotated)]).sum(axis=1).mean())
    for larger, smaller in zip([alone, *errors], errors, strict=False):
        assert smaller < larger / 2


@pytest.mark.parametrize("bits", BITS)
def test_the_error_told_is_the_error_on_tokens_never_seen(trained: dict[int, Codebook], bits: int) -> None:
    rows = tokens(4000, 48, seed=4)
    decoded, error = compressed(trained[bits], rows)
    assert error == pytest.approx(trained[bits].error, rel=0.1)
    assert float(np.square(decoded - rows).sum(axis=1).mean()) == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("bits", BITS)
def test_decoding_adds_the_vectors_that_the_codes_name(trained: dict[int, Codebook], bits: int) -> None:
    codebook = trained[bits]
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (20, codebook.code_size), dtype=np.uint8)
    assignments = random.integers(0, len(codebook.centroids), 20).astype(np.uint16)
    stages, groups = codebook.residuals.shape[:2]
    expected = codebook.centroids[assignments]
    for token in range(20):
        for stage in range(stages):
            chosen = [codebook.residuals[stage, g, codes[token, stage * groups + g]] for g in range(groups)]
            expected[token] += np.concatenate(chosen)
        expected[token] *= 2 ** ((int(codes[token, -1]) - 128) / 128)
    np.testing.assert_allclose(codebook.decode(assignments, codes), expected, atol=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_compression_keeps_the_length_of_tokens(trained: dict[int, Codebook], bits: int) -> None:
    rows = tokens(500, 48, seed=5)
    np.testing.assert_allclose(np.linalg.norm(compressed(trained[bits], rows)[0], axis=1), 1, rtol=0.004)
    nothing = np.zeros((1, 48), dtype=np.float32)
    assert np.isfinite(compressed(trained[bits], nothing)[0]).all()


@pytest.mark.parametrize("bits", BITS)
def test_every_code_is_the_nearest(trained: dict[int, Codebook], bits: int) -> None:
    codebook = trained[bits]
    rotated = codebook.rotate(tokens(100, 48, seed=5))
    assignments = codebook.assign(rotated)
    left = rotated - codebook.centroids[assignments]
    packed = codebook.pack_products(rotated, assignments)
    fours = np.stack([packed & 15, packed >> 4], axis=2).reshape(100, -1)  # even groups in the low halves
    for group, entries in enumerate(codebook.products):
        distances = np.square(left[:, group * 4 : group * 4 + 4, None] - entries.T).sum(axis=1)
        np.testing.assert_allclose(distances[np.arange(100), fours[:, group]], distances.min(axis=1), atol=1e-6)
    codes = codebook.encode(rotated, assignments)[:, :-1].reshape(100, len(codebook.residuals), -1)
    for stage, groups in enumerate(codebook.residuals):
        width = groups.shape[2]
        chosen = np.empty_like(left)
        for group, entries in enumerate(groups):
            part = slice(group * width, (group + 1) * width)
            distances = np.square(left[:, part, None] - entries.T).sum(axis=1)
            code = codes[:, stage, group]
            np.testing.assert_allclose(distances[np.arange(100), code], distances.min(axis=1), atol=1e-6)
            chosen[:, part] = entries[code]
        left -= chosen


def test_the_same_seed_gives_the_same_codebook_and_another_gives_another() -> None:
    rows = tokens(6000, 24)
    first, again, other = (train_codebook(rows, 32, 4, seed) for seed in (1, 1, 2))
    for name in ("rotation", "centroids", "residuals", "products"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.error == again.error
    assert (first.centroids != other.centroids).any()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [0.0, 0.25])
@pytest.mark.parametrize("count", [1, 300, 5000])
def test_identical_tokens_are_kept_exactly(bits: int, value: float, count: int) -> None:
    rows = np.full((count, 16), value, dtype=np.float32)
    codebook = train_codebook(rows, 8, bits)
    np.testing.assert_allclose(compressed(codebook, rows)[0], rows, atol=1e-5)
    assert codebook.error < 1e-8


@pytest.mark.parametrize("bits", BITS)
def test_few_different_tokens_are_kept_exactly_however_often_they_come(bits: int) -> None:
    random = np.random.default_rng(0)
    different = tokens(200, 16)
    rows = different[np.minimum(random.geometric(0.02, 3000) - 1, 199)]  # some a hundred times, some once
    np.testing.assert_allclose(compressed(train_codebook(rows, 1, bits), rows)[0], rows, atol=0.004)


def test_few_tokens_are_kept_exactly_where_two_centroids_are_almost_equally_near() -> None:
    grid = np.array([(x, y) for x in range(-3, 4) for y in range(-3, 4)], dtype=np.float32)
    for seed in range(100):  # assigned but once, as before they are rotated, some of these lose one
        again = np.random.default_rng(seed).integers(0, len(grid), 30)
        sample = np.concatenate([grid, grid[again]])
        np.testing.assert_allclose(compressed(train_codebook(sample, 12, 2, seed), sample)[0], sample, atol=0.02)


def test_no_tokens_are_compressed_to_none(trained: dict[int, Codebook]) -> None:
    rows, error = compressed(trained[2], np.empty((0, 48), dtype=np.float32))
    assert rows.shape == (0, 48)
    assert error == 0


@pytest.mark.parametrize(("lists", "bits"), [(0, 2), (4, 3), (4, 16)])
def test_impossible_settings_are_refused(lists: int, bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits is {bits} and lists {lists}"):
        train_codebook(tokens(10, 4), lists, bits)


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        train_codebook(np.empty((0, 4), dtype=np.float32), 4, 2)


def test_assignments_take_two_bytes_while_they_can() -> None:
    assert assignment_dtype(1 << 16) is np.uint16
    assert assignment_dtype((1 << 16) + 1) is np.uint32


# The nearest centroid


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 40),
    lists=st.integers(1, 40),
    dim=st.integers(1, 20),
    shift=st.sampled_from([0.0, 3.0, -3.0]),
    narrow=st.booleans(),
)
def test_nearest_is_nearest_but_for_rounding(
    seed: int, count: int, lists: int, dim: int, shift: float, narrow: bool
) -> None:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, dim)).astype(np.float32)
    centroids = (random.standard_normal((lists, dim)) + shift).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kmeans, "_multiplies_bfloat16", lambda: narrow)
        patch.setattr(kmeans, "BLOCK_ROWS", 7)
        found = nearest(vectors, centroids)
    distances = np.square(vectors[:, None] - centroids).sum(axis=2, dtype=np.float64)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(centroids - centroids.mean(axis=0), axis=1).max()
    rounding = (0.02 * (lengths + np.square(shift) * dim) if narrow else 0) + 1e-4
    assert (distances[np.arange(count), found] <= distances.min(axis=1) + rounding).all()


def test_nearest_agrees_with_faiss_on_tokens() -> None:
    rows, centroids = tokens(5000, 64), tokens(200, 64, seed=1)
    exact, places = faiss.knn(rows, centroids, 1)
    found = nearest(rows, centroids)
    assert (found == places[:, 0]).mean() > 0.95
    assert np.square(rows - centroids[found]).sum(axis=1).mean() == pytest.approx(exact.mean(), rel=1e-3)


def test_training_centroids_lessens_the_distance_and_leaves_none_unused() -> None:
    rows = tokens(4000, 32)
    drawn, placed = (train_centroids(rows, 100, iterations, np.random.default_rng(0)) for iterations in (0, 6))
    before, after = (faiss.knn(rows, centroids, 1)[0].mean() for centroids in (drawn, placed))
    assert after < before * 0.8
    assert len(np.unique(faiss.knn(rows, placed, 1)[1])) >= 98


# The files


@pytest.mark.parametrize("bits", BITS)
def test_what_is_saved_is_loaded(tmp_path: Path, trained: dict[int, Codebook], bits: int) -> None:
    names = save_codebook(tmp_path, trained[bits])
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    loaded = load_codebook(tmp_path, trained[bits].error)
    for name in Codebook.__slots__:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(trained[bits], name))


ARRAYS = ["rotation", "centroids", "residuals", "products"]


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(
    "damage", ["gone", "empty", "cut", "header", "nan", "shape", "type", "huge", "vast", "long", "zip", "object"]
)
def test_a_damaged_file_is_named(tmp_path: Path, trained: dict[int, Codebook], name: str, damage: str) -> None:
    save_codebook(tmp_path, trained[4])
    path = tmp_path / f"{name}.npy"
    array, whole = np.load(path), path.read_bytes()
    match damage:
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(whole[:-4])
        case "header":
            path.write_bytes(b"\x00" * 128 + whole[128:])
        case "nan":
            array.flat[-1] = np.nan
            np.save(path, array)
        case "shape":
            np.save(path, array[..., None])
        case "type":
            np.save(path, array.astype(np.float16))
        case "huge" | "vast" | "long":  # more bytes than there are, than a file can have; a header no one would write
            count, length = {"huge": (1 << 50, 118), "vast": (1 << 70, 118), "long": (1, 20_000)}[damage]
            text = (
                f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count},), }}".ljust(length - 1).encode() + b"\n"
            )
            path.write_bytes(b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text + whole[128:])
        case "zip":
            path.write_bytes(b"PK\x03\x04" + whole[4:])
        case "object":
            np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(FileNotFoundError if damage == "gone" else IndexFormatError, match=f"{name}.npy") as caught:
        load_codebook(tmp_path, 0.5)
    assert "\n" not in str(caught.value)


def test_eight_bits_by_tables_are_read(tmp_path: Path, trained: dict[int, Codebook]) -> None:
    random = np.random.default_rng(0)
    residuals = random.standard_normal((4, 12, 256, 4)).astype(np.float32) * np.float32(0.1)
    save_codebook(tmp_path, replace(trained[8], residuals=residuals))
    loaded = load_codebook(tmp_path, 0.5)
    assert loaded.bits == 8
    rotated = loaded.rotate(tokens(50, 48))
    assignments = loaded.assign(rotated)
    assert loaded.squared_error(rotated, assignments, loaded.encode(rotated, assignments)) < 0.05


def test_codes_of_one_dimension_stand_for_equally_spaced_numbers(tmp_path: Path, trained: dict[int, Codebook]) -> None:
    residuals = trained[8].residuals.copy()
    residuals[0, 3, 7] += 0.01
    save_codebook(tmp_path, replace(trained[8], residuals=residuals))
    with pytest.raises(IndexFormatError, match=r"residuals\.npy is damaged: .* not equally spaced"):
        load_codebook(tmp_path, 0.5)


@pytest.mark.parametrize("name", ["centroids", "residuals", "products"])
def test_files_of_another_dimension_are_refused(tmp_path: Path, trained: dict[int, Codebook], name: str) -> None:
    save_codebook(tmp_path, trained[2])
    other = train_codebook(tokens(300, 40), 8, 2)
    np.save(tmp_path / f"{name}.npy", getattr(other, name))
    with pytest.raises(IndexFormatError, match=f"{name}.npy"):
        load_codebook(tmp_path, 0.5)


def test_a_rotation_that_is_none_is_refused(tmp_path: Path, trained: dict[int, Codebook]) -> None:
    save_codebook(tmp_path, trained[2])
    np.save(tmp_path / "rotation.npy", trained[2].rotation * 2)
    with pytest.raises(IndexFormatError, match=r"rotation\.npy"):
        load_codebook(tmp_path, 0.5)


def test_a_codebook_does_not_depend_on_threads(trained: dict[int, Codebook]) -> None:
    rows = tokens(3000, 48, seed=6)
    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            faiss.omp_set_num_threads(count)
            found.append(compressed(trained[2], rows)[0])
    finally:
        torch.set_num_threads(threads[0])
        faiss.omp_set_num_threads(threads[1])
    np.testing.assert_array_equal(found[0], found[1])
