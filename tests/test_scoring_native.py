"""The kernel that scores codes, against torch's path; what is without it, and what it makes of damaged files."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mbretrieve.compiled import COMPILERS
from mbretrieve.scoring import CompressedTokens, maxsim_codes, maxsim_compressed, maxsim_ragged_batch, native, search
from tests.processors import PROCESSORS, built_for

LAYOUTS = [(8, 1), (4, 1), (4, 2), (1, 1)]  # width of a code, codes a group


@pytest.fixture(scope="module", params=PROCESSORS)
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Build the kernel in a new folder."""
    with pytest.MonkeyPatch.context() as patch:
        built_for(patch, native.KERNEL, request.param)
        patch.setenv("MBRETRIEVE_CACHE", str(tmp_path_factory.mktemp("kernels")))
        patch.delenv("MBRETRIEVE_COMPILE", raising=False)
        native.KERNEL.forget()
        if not any(map(shutil.which, COMPILERS)):
            pytest.skip("this machine has no compiler")
        assert native.prepare()
        yield
    native.KERNEL.forget()


def compress(seed: int, lengths: list[int], layout: tuple[int, int], *, spaced: bool = False, lists: int = 5):
    """Draw compressed tokens, and where their documents begin and end."""
    (width, stages), random = layout, np.random.default_rng(seed)
    bounds = np.cumsum([0, *lengths])
    residuals = random.standard_normal((stages, 24 // width, 256, width)).astype(np.float32)
    if spaced:
        residuals = residuals[:, :, :1] + np.arange(256, dtype=np.float32)[:, None] * residuals[:, :, 1:2] / 50
    tokens = CompressedTokens(
        random.standard_normal((lists, 24)).astype(np.float32),
        residuals,
        random.integers(0, lists, bounds[-1], dtype=np.uint16 if lists < 1 << 16 else np.uint32),
        random.integers(0, 256, (bounds[-1], stages * (24 // width) + 1), dtype=np.uint8),
    )
    return tokens, bounds


def drawn(seed: int, tokens: int) -> torch.Tensor:
    return torch.randn(tokens, 24, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("kernel")
@given(
    seed=st.integers(0, 999),
    queries=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    layout=st.sampled_from(LAYOUTS),
    spaced=st.booleans(),
    lists=st.sampled_from([5, 70_000]),
    known=st.booleans(),
    some=st.booleans(),
)
def test_it_scores_as_torch_does(
    seed: int,
    queries: list[int],
    lengths: list[int],
    layout: tuple[int, int],
    spaced: bool,
    lists: int,
    known: bool,
    some: bool,
) -> None:
    tokens, bounds = compress(seed, lengths, layout, spaced=spaced, lists=lists)
    asked = [drawn(seed + number, count) for number, count in enumerate(queries)]
    rows = np.arange(len(lengths))[::-2] if some else None
    coarse = torch.cat(asked) @ torch.from_numpy(tokens.centroids).T if known else None
    scores = maxsim_compressed(asked, tokens, torch.from_numpy(bounds), rows, coarse)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "native_scorer", lambda *_: None)
        expected = maxsim_compressed(asked, tokens, torch.from_numpy(bounds), rows, coarse)
    # Of the size of what is added up: of a sum in which most cancels, little is left.
    longest = max(float(np.linalg.norm(rows, axis=1).max()) for rows in (tokens.decode(), *map(np.asarray, asked)))
    slack = 1e-6 * longest**2
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=slack)
    one = maxsim_codes(asked[0].numpy(), tokens, bounds, rows, None if coarse is None else coarse[: queries[0]].numpy())
    np.testing.assert_allclose(one, expected[0], rtol=1e-5, atol=slack)


@pytest.mark.usefixtures("kernel")
@given(
    seed=st.integers(0, 999),
    queries=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    dim=st.sampled_from([1, 7, 24, 32, 96, 128]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    some=st.booleans(),
)
def test_tokens_as_they_are_score_as_by_torch(
    seed: int, queries: list[int], lengths: list[int], dim: int, dtype: torch.dtype, some: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    asked = [torch.randn(count, dim, generator=generator) for count in queries]
    tokens = (torch.randn(sum(lengths), dim, generator=generator) * 10.0 ** (seed % 9 - 4)).to(dtype)
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    rows = np.arange(len(lengths))[::-2] if some else None
    scores = maxsim_ragged_batch(asked, tokens, offsets, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "native_maxsim", lambda *_, **__: None)
        expected = maxsim_ragged_batch(asked, tokens, offsets, rows)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_of_torchs_are_what_they_were_beside_the_kernel(dtype: torch.dtype) -> None:
    """Both use tiles where a machine has some, and torch takes them to be as it left them."""
    one, other = (torch.randn(256, 256, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (1, 2))
    before = one @ other
    tokens = torch.randn(40, 128, generator=torch.Generator().manual_seed(3)).to(dtype)
    maxsim_ragged_batch([torch.ones(20, 128)], tokens, torch.tensor([0, 7, 40]))
    assert torch.equal(one @ other, before)


@pytest.mark.usefixtures("kernel")
def test_every_float16_is_read_as_what_it_is() -> None:
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)[:, None]
    numbers = numbers[~np.isnan(numbers[:, 0])]
    scores = native.native_maxsim(np.ones((1, 1), dtype=np.float32), numbers, np.arange(len(numbers) + 1))
    assert scores is not None
    np.testing.assert_array_equal(scores, numbers[:, 0].astype(np.float32))


@pytest.mark.usefixtures("kernel")
def test_the_best_centroids_of_each_token_are_found() -> None:
    random = np.random.default_rng(0)
    for tokens, lists, count in ((1, 1, 1), (13, 100, 100), (40, 4099, 32), (16, 50, 7)):
        query, centroids = (random.standard_normal((n, 24)).astype(np.float32) for n in (tokens, lists))
        seen = native.look(query, centroids, count)
        assert seen is not None
        laned, numbers, largest = seen
        products = query @ centroids.T
        np.testing.assert_allclose(laned.by_token(), products, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(largest, -np.sort(-products, axis=1)[:, :count], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(largest, np.take_along_axis(laned.by_token(), numbers, axis=1))
        assert (np.diff(largest, axis=1) <= 0).all()


@pytest.mark.usefixtures("kernel")
def test_of_what_is_not_a_number_none_is_best() -> None:
    centroids = np.ones((40, 24), dtype=np.float32)
    centroids[3:] = np.nan
    seen = native.look(np.ones((2, 24), dtype=np.float32), centroids, 5)
    assert seen is not None
    assert seen[1].tolist() == [[0, 1, 2, -1, -1]] * 2
    assert seen[2].tolist() == [[24.0] * 3 + [-np.inf] * 2] * 2


@pytest.mark.usefixtures("kernel")
def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [150_000, 1, 90_000, 8, 7, 60_000]
    tokens, bounds = compress(0, lengths, (4, 1))
    query = drawn(1, 20).numpy()
    scores = {}
    for threads in (1, 2, 3, 16):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        scores[threads] = maxsim_codes(query, tokens, bounds)
    for found in scores.values():
        np.testing.assert_array_equal(found, scores[1])


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("width", [np.uint16, np.uint32])
def test_a_centroid_that_is_not_there_is_no_score(width: type) -> None:
    tokens, bounds = compress(0, [3, 9, 2], (4, 1))
    assignments = tokens.assignments.astype(width)
    assignments[5] = 60_000
    scores = maxsim_codes(drawn(1, 4).numpy(), replace(tokens, assignments=assignments), bounds)
    assert np.isnan(scores).tolist() == [False, True, False]


@pytest.mark.usefixtures("kernel")
def test_documents_that_are_not_there_are_refused() -> None:
    tokens, bounds = compress(0, [3, 9], (4, 1))
    query = drawn(1, 4).numpy()
    with pytest.raises(ValueError, match="document 1 has no token"):
        maxsim_codes(query, tokens, np.array([0, 3, 3, 12]))
    with pytest.raises(ValueError, match="end at token 13, but there are 12"):
        maxsim_codes(query, tokens, np.array([0, 3, 13]))
    assert maxsim_codes(query, tokens, bounds, np.array([], dtype=np.int64)).shape == (0,)


@pytest.mark.usefixtures("kernel")
def test_mapped_files_are_read_where_they_lie(tmp_path: Path) -> None:
    tokens, bounds = compress(0, [3, 1, 9], (4, 1))
    for name in ("assignments", "codes"):
        np.save(tmp_path / f"{name}.npy", getattr(tokens, name))
    mapped = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("assignments", "codes")}
    query = drawn(1, 4).numpy()
    np.testing.assert_array_equal(
        maxsim_codes(query, replace(tokens, **mapped), bounds), maxsim_codes(query, tokens, bounds)
    )


@pytest.mark.usefixtures("kernel")
def test_a_system_that_tells_no_affinity_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, bounds = compress(0, [3, 1, 9], (4, 1))
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert maxsim_codes(np.ones((4, 24), dtype=np.float32), tokens, bounds).shape == (3,)


def test_without_a_compiler_torch_does_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBRETRIEVE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    native.KERNEL.forget()
    try:
        assert not native.prepare()
        tokens, bounds = compress(0, [3, 1, 9], (4, 1))
        assert native.native_scorer(drawn(1, 4).numpy(), tokens, bounds) is None
        assert maxsim_compressed([drawn(1, 4)], tokens, torch.from_numpy(bounds)).shape == (1, 3)
    finally:
        native.KERNEL.forget()
