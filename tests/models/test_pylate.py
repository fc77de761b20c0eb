"""What we save, PyLate 1.6 loads, and the reverse; in an environment of its own, because its pins are old.

``MBRETRIEVE_PYLATE_PYTHON`` names a python that has PyLate; without it one is made, which downloads gigabytes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbretrieve.models.colbert import ColBERT
from tests.models import small
from tests.models.small import HIDDEN, TEXTS, assert_same_rows, layer

pytestmark = pytest.mark.slow
SCRIPT = """
import json, sys
import numpy as np
from pylate import models

for folder, texts in json.load(sys.stdin):
    model = models.ColBERT(folder, device="cpu", local_files_only=True)
    found = {"query": model.encode(texts, is_query=True), "document": model.encode(texts, is_query=False)}
    arrays = {f"{side}{n}": rows for side, all_rows in found.items() for n, rows in enumerate(all_rows)}
    pooled = model.encode(texts[:3], is_query=False, pool_factor=2)
    np.savez(folder + "/vectors.npz", **arrays, **{f"pooled{n}": rows for n, rows in enumerate(pooled)})
    model.save_pretrained(folder + "/resaved")
"""
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "attended": {"attend_to_expansion_tokens": True},
    "no_expansion": {"do_query_expansion": False, "query_length": 12},
    "no_markers": {"query_prefix": "", "document_prefix": "", "skiplist_words": []},
    "stack": {"layers": [layer(HIDDEN, 24, bias=True, use_residual=True), layer(24, 8, seed=2)]},
    "wordpiece": {"family": "wordpiece"},
    "roberta": {"family": "roberta"},
}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    if named := os.environ.get("MBRETRIEVE_PYLATE_PYTHON"):
        return named
    home = tmp_path_factory.mktemp("pylate")
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    made = str(home / "bin" / "python")
    subprocess.run([made, "-m", "pip", "install", "--quiet", "pylate==1.6.0"], check=True)
    return made


def test_pylate_reads_ours_and_we_read_pylates(python: str, tmp_path: Path) -> None:
    # sentence-transformers 5, under PyLate, strips the white space around a text.
    texts = [text for text in TEXTS if text == text.strip()]
    models = {}
    for case, settings in CASES.items():
        made = small.pylate(tmp_path / "made" / case, **settings)
        models[case] = ColBERT.from_pretrained(made, device="cpu", dtype="float32")
        models[case].save_pretrained(tmp_path / case, layout="pylate")
    work = [(str(tmp_path / case), texts) for case in CASES]
    subprocess.run([python, "-c", SCRIPT], input=json.dumps(work), text=True, check=True)
    for case, model in models.items():
        found = np.load(tmp_path / case / "vectors.npz")
        again = ColBERT.from_pretrained(tmp_path / case / "resaved", device="cpu", dtype="float32")
        for ours in (model, again):
            assert_same_rows(ours.encode_queries(texts), [found[f"query{n}"] for n in range(len(texts))])
            assert_same_rows(ours.encode_documents(texts), [found[f"document{n}"] for n in range(len(texts))])
        # PyLate leaves the means of merged rows shorter than one.
        pooled = [found[f"pooled{n}"] for n in range(3)]
        scaled = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in pooled]
        ours_pooled = model.encode_documents(texts[:3], pool_factor=2)
        assert_same_rows([_sorted(rows) for rows in ours_pooled], [_sorted(rows) for rows in scaled])


def _sorted(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(np.round(rows, 3).T[::-1])]
