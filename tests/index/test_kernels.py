"""The index's kernels against what stands in for them where there is no compiler."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbretrieve.errors import IndexFormatError
from mbretrieve.index import MultiVectorIndex, products
from mbretrieve.index.products import ProductQuantizer

from .packed import tiny


@pytest.mark.usefixtures("every_kernel")
@settings(max_examples=60)
@given(
    seed=st.integers(0, 999),
    count=st.sampled_from([0, 1, 15, 16, 33, 700]),
    groups=st.sampled_from([2, 4, 10]),
    entries=st.sampled_from([16, 256]),
    width=st.sampled_from([1, 2, 4, 8]),
)
def test_each_part_of_a_vector_gets_the_entry_that_is_nearest(
    seed: int, count: int, groups: int, entries: int, width: int
) -> None:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, groups, width)).astype(np.float32)
    quantizer = ProductQuantizer(table := random.standard_normal((groups, entries, width)).astype(np.float32))
    codes = quantizer.encode(vectors.reshape(count, groups * width))
    if entries == 16:
        codes = np.stack([codes & 15, codes >> 4], axis=2).reshape(count, groups)
    apart = np.square(vectors[:, :, None] - table).sum(axis=3)  # (count, groups, entries)
    chosen = np.take_along_axis(apart, codes[:, :, None].astype(np.int64), axis=2)[:, :, 0]
    np.testing.assert_allclose(chosen, apart.min(axis=2), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("every_kernel")
def test_threads_change_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((20_011, 16)).astype(np.float32)
    quantizer = ProductQuantizer(random.standard_normal((4, 256, 4)).astype(np.float32))
    found = []
    for threads in (1, 2, 3, 16):
        monkeypatch.setattr(products, "threads", lambda threads=threads: threads)
        found.append(quantizer.encode(vectors))
    for codes in found:
        np.testing.assert_array_equal(codes, found[0])


@pytest.mark.usefixtures("every_kernel")
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30, 3e38])
def test_numbers_beyond_measure_are_an_answer_or_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    tiny(monkeypatch)
    random = np.random.default_rng(0)
    documents = [random.standard_normal((3, 8)).astype(np.float32) for _ in range(60)]
    signs = np.where(random.random((40, 8)) < 0.5, -1, 1)
    with MultiVectorIndex.create(tmp_path / "index", 8) as index, np.errstate(all="ignore"):
        index.add([f"d{i}" for i in range(60)], documents)
        assert index.status()["packed_tokens"] == 180
        query = (scale * signs).astype(np.float32)
        if scale < 1e38:
            assert len(index.search([query], 5)[0]) == 5
        else:
            with pytest.raises(IndexFormatError, match="not a number"):
                index.search([query], 5)
