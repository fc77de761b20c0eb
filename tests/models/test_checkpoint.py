"""Save, load, the same vectors, in every layout; and what cannot be read or written is said in one line."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mbretrieve.errors import ModelError
from mbretrieve.models.colbert import ColBERT
from mbretrieve.models.dense import DenseEncoder
from tests.models import small
from tests.models.small import HIDDEN, TEXTS, assert_same_rows, edit, layer


def load(folder: Path, **arguments: Any) -> ColBERT:
    return ColBERT.from_pretrained(folder, device="cpu", dtype="float32", **arguments)


def assert_same(model: ColBERT, other: ColBERT) -> None:
    assert_same_rows(model.encode_queries(TEXTS), other.encode_queries(TEXTS), tolerance=1e-5)
    assert_same_rows(model.encode_documents(TEXTS), other.encode_documents(TEXTS), tolerance=1e-5)


STACK = [layer(HIDDEN, 24, bias=True, activation_function="torch.nn.modules.activation.GELU"), layer(24, 8, seed=1)]
RESIDUAL = [layer(HIDDEN, 8, use_residual=True)]
# A model, and the layouts that can express it; the first is the one that is written if none is named.
EXPRESSIBLE: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "pylate": (lambda f: small.pylate(f), ("pylate", "sentence-transformers")),
    "stack": (lambda f: small.pylate(f, STACK), ("pylate", "sentence-transformers")),
    "residual": (lambda f: small.pylate(f, RESIDUAL), ("pylate", "sentence-transformers")),
    "no_expansion": (lambda f: small.pylate(f, do_query_expansion=False), ("pylate", "sentence-transformers")),
    "no_markers": (
        lambda f: small.pylate(f, query_prefix="", document_prefix="", skiplist_words=[]),
        ("pylate", "sentence-transformers"),
    ),
    "lower_case": (lambda f: small.pylate(f, family="wordpiece"), ("pylate", "sentence-transformers")),
    "roberta": (lambda f: small.pylate(f, family="roberta"), ("pylate", "sentence-transformers")),
    "text_prompts": (lambda f: small.pylate(f, query_prefix="query: "), ("sentence-transformers",)),
    "stanford": (lambda f: small.stanford(f), ("sentence-transformers", "stanford")),
    "bare": (lambda f: small.bare(f), ("sentence-transformers",)),
}
LAYOUTS = ("pylate", "sentence-transformers", "stanford")
FILE_OF = {"pylate": "1_Dense", "sentence-transformers": "sentence_bert_config.json", "stanford": "artifact.metadata"}


@pytest.mark.parametrize("case", EXPRESSIBLE)
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, case: str) -> None:
    make, layouts = EXPRESSIBLE[case]
    model = load(make(tmp_path / "made"))
    for layout in (None, *layouts):
        folder = tmp_path / str(layout)
        model.save_pretrained(folder, layout=layout)
        assert_same(model, load(folder))
        assert (folder / FILE_OF[layout or layouts[0]]).exists()
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    for layout in set(LAYOUTS) - set(layouts):
        with pytest.raises(ModelError, match=f"layout {layout} cannot express") as error:
            model.save_pretrained(tmp_path / "refused", layout=layout)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("case", EXPRESSIBLE)
def test_sentence_transformers_reads_what_is_saved(tmp_path: Path, case: str) -> None:
    module = pytest.importorskip("sentence_transformers.multi_vector_encoder", reason="the oracle came with version 6")
    make, layouts = EXPRESSIBLE[case]
    model = load(make(tmp_path / "made"))
    for layout in layouts:
        model.save_pretrained(tmp_path / layout, layout=layout)
        oracle = module.MultiVectorEncoder(str(tmp_path / layout), device="cpu", local_files_only=True)
        assert_same_rows(model.encode_queries(TEXTS), oracle.encode_query(TEXTS, convert_to_numpy=True))
        assert_same_rows(model.encode_documents(TEXTS), oracle.encode_document(TEXTS, convert_to_numpy=True))


def test_another_layout_of_the_same_model_has_the_same_hash(tmp_path: Path) -> None:
    model = load(small.pylate(tmp_path / "made"))
    model.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").identity.content_hash == model.identity.content_hash
    half = ColBERT.from_pretrained(tmp_path / "made", device="cpu", dtype="bfloat16")
    assert half.identity.content_hash == model.identity.content_hash


def test_a_model_is_saved_over_itself_with_its_new_lengths(tmp_path: Path) -> None:
    folder = small.pylate(tmp_path)
    model = load(folder, query_length=24, document_length=100)
    model.save_pretrained(folder)
    again = load(folder)
    assert (again.query_length, again.document_length) == (24, 100)
    assert_same(model, again)


def test_dense_head_of_a_late_interaction_model_is_saved_as_dense(tmp_path: Path) -> None:
    model = DenseEncoder.from_pretrained(small.pylate(tmp_path / "made"), device="cpu", dtype="float32")
    model.save_pretrained(tmp_path / "saved")
    again = DenseEncoder.from_pretrained(tmp_path / "saved", device="cpu", dtype="float32")
    for ours, theirs in (
        (model.encode_queries, again.encode_queries),
        (model.encode_documents, again.encode_documents),
    ):
        assert_same_rows([ours(TEXTS)], [theirs(TEXTS)], tolerance=1e-5)
    with pytest.raises(ModelError, match="layout is 'pylate', expected one that has dense models"):
        model.save_pretrained(tmp_path / "other", layout="pylate")


def test_a_model_that_no_layout_can_express(tmp_path: Path) -> None:
    made = load(small.pylate(tmp_path / "made", skiplist_words=["."]))
    made.save_pretrained(tmp_path / "saved", layout="sentence-transformers")
    mask = {"skiplist_words": ["a"], "skiplist_tasks": ["query"]}
    small.write(tmp_path / "saved" / "mask" / "config.json", mask)
    modules = json.loads((tmp_path / "saved" / "modules.json").read_text())
    modules.insert(
        2, {"path": "mask", "type": next(m["type"] for m in modules if m["type"].endswith("MultiVectorMask"))}
    )
    small.write(tmp_path / "saved" / "modules.json", modules)
    with pytest.raises(ModelError, match="cannot express unlike skiplists for queries and documents") as error:
        load(tmp_path / "saved").save_pretrained(tmp_path / "again")
    assert str(error.value).count("layout") == 4  # three by name, then "no layout can"


def test_shards_and_prefixes_and_heads(tmp_path: Path) -> None:
    whole = load(small.bare(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "shards")
    tensors = load_file(tmp_path / "shards" / "model.safetensors")
    (tmp_path / "shards" / "model.safetensors").unlink()
    shards: list[dict[str, torch.Tensor]] = [{}, {"head.dense.weight": torch.zeros(2, 2)}]
    for number, (name, tensor) in enumerate(tensors.items()):
        shards[number % 2]["model." + name] = tensor
    places = {}
    for number, shard in enumerate(shards):
        save_file(shard, tmp_path / "shards" / f"part-{number}.safetensors")
        places |= dict.fromkeys(shard, f"part-{number}.safetensors")
    small.write(tmp_path / "shards" / "model.safetensors.index.json", {"weight_map": places})
    assert_same(whole, load(tmp_path / "shards"))


def test_a_pickle_is_refused_with_a_command_that_converts_it(tmp_path: Path) -> None:
    folder = small.bare(tmp_path / "a model")
    whole = load(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="pickle") as error:
        load(folder)
    command = str(error.value).partition("convert it with: ")[2]
    python, *arguments = shlex.split(command)
    assert python == "python"
    subprocess.run([sys.executable, *arguments], check=True)
    assert_same(whole, load(folder))


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _module(folder: Path, number: int, **changes: Any) -> None:
    entries = json.loads((folder / "modules.json").read_text())
    entries[number] |= changes
    small.write(folder / "modules.json", entries)


def _tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights_missing": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "weights_cut_off": (lambda f: _shorten(f / "model.safetensors"), "cannot be read as safetensors"),
    "architecture": (lambda f: edit(f / "config.json", model_type="bert"), "'bert', expected 'modernbert'"),
    "shape": (lambda f: edit(f / "config.json", intermediate_size=64), "has shape .* expected"),
    "tensor_missing": (
        lambda f: _tensors(f / "model.safetensors", lambda t: t.pop("layers.1.mlp.Wo.weight")),
        "no tensor layers.1.mlp.Wo.weight",
    ),
    "vocabulary": (
        lambda f: (
            edit(f / "config.json", vocab_size=50),
            _tensors(
                f / "model.safetensors",
                lambda t: t.update({k: v[:50].clone() for k, v in t.items() if "tok_embeddings" in k}),
            ),
        ),
        "tokens, the model embeds 50",
    ),
    "projection_missing": (lambda f: shutil.rmtree(f / "1_Dense"), "1_Dense"),
    "projection_shape": (
        lambda f: edit(f / "1_Dense" / "config.json", out_features=99),
        r"linear.weight is \(16, 32\), expected shape \(99, 32\)",
    ),
    "projection_input": (
        lambda f: (
            edit(f / "1_Dense" / "config.json", in_features=20),
            _tensors(
                f / "1_Dense" / "model.safetensors",
                lambda t: t.update({"linear.weight": t["linear.weight"][:, :20].clone()}),
            ),
        ),
        "takes rows of 20, but is given rows of 32",
    ),
    "projection_bias": (lambda f: edit(f / "1_Dense" / "config.json", bias=True), "linear.bias is missing"),
    "projection_unknown": (
        lambda f: _tensors(f / "1_Dense" / "model.safetensors", lambda t: t.update(more=torch.ones(1))),
        "a tensor more",
    ),
    "activation": (
        lambda f: edit(f / "1_Dense" / "config.json", activation_function="os.system"),
        "activation os.system is not supported",
    ),
    "foreign_code": (lambda f: _module(f, 1, type="evil.Module"), "names evil.Module"),
    "path_outside": (lambda f: _module(f, 1, path="../other"), "expected one inside"),
    "first_module": (lambda f: _module(f, 0, type="sentence_transformers.models.CLIPModel"), "expected a Transformer"),
    "model_type": (
        lambda f: edit(f / "config_sentence_transformers.json", model_type="SparseEncoder"),
        "is a SparseEncoder, expected",
    ),
    "length": (lambda f: edit(f / "config_sentence_transformers.json", query_length=-1), "query_length is -1"),
    "skiplist": (lambda f: edit(f / "config_sentence_transformers.json", skiplist_words="!"), "skiplist_words is '!'"),
    "config_missing": (lambda f: (f / "config.json").unlink(), "model_type is None"),
    "config_broken": (lambda f: (f / "config.json").write_text("{"), "not readable JSON"),
    "modules_broken": (lambda f: (f / "modules.json").write_text("{}"), "holds no list"),
    "mask_unknown": (lambda f: edit(f / "tokenizer_config.json", mask_token=None), "the mask token, which"),
    "not_a_model": (lambda f: [shutil.rmtree(f), f.mkdir()], "is not a model folder"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_are_one_line(tmp_path: Path, case: str) -> None:
    break_it, words = FAULTS[case]
    folder = small.pylate(tmp_path / "model")
    break_it(folder)
    with pytest.raises(ModelError, match=words) as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"processing_kwargs": {"text": {"max_length": 3}}}, "processing_kwargs is"),
        ({"transformer_task": "fill-mask"}, "transformer_task is 'fill-mask'"),
        ({"modality_config": {"text": {"method": "forward", "method_output_name": "logits"}}}, "text goes through"),
        ({"query_expansion": {"strategy": "fixed"}}, "length is None"),
        ({"query_expansion": {"strategy": "more", "length": 3}}, "expected a strategy of fixed or min"),
    ],
)
def test_settings_that_are_not_honoured_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    load(small.pylate(tmp_path / "made")).save_pretrained(tmp_path / "saved", layout="sentence-transformers")
    edit(tmp_path / "saved" / "sentence_bert_config.json", **changes)
    with pytest.raises(ModelError, match=words):
        load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([("2_TokenPooling", "HierarchicalTokenPooling")], "a HierarchicalTokenPooling module is not supported"),
        ([("2_Normalize", "Normalize"), ("1_Dense", "Dense")], "Dense comes behind Normalize"),
    ],
)
def test_modules_that_are_not_honoured_are_refused(tmp_path: Path, entries: list[tuple[str, str]], words: str) -> None:
    load(small.pylate(tmp_path / "made")).save_pretrained(tmp_path / "saved", layout="sentence-transformers")
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in entries]
    small.write(tmp_path / "saved" / "modules.json", modules)
    with pytest.raises(ModelError, match=words):
        load(tmp_path / "saved")


def test_stanford_without_projection(tmp_path: Path) -> None:
    folder = small.stanford(tmp_path)
    _tensors(folder / "model.safetensors", lambda tensors: tensors.pop("linear.weight"))
    with pytest.raises(ModelError, match="which is not there"):
        load(folder)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    model = load(small.pylate(tmp_path / "made"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written"):
        model.save_pretrained(tmp_path / "file" / "model")
    with pytest.raises(ModelError, match="layout is 'onnx', expected one that has colbert models: pylate, sentence-tr"):
        model.save_pretrained(tmp_path / "saved", layout="onnx")


def test_a_model_that_another_version_brought_is_named() -> None:
    with pytest.raises(ModelError, match=r"mbretrieve/mini-v1 came with another version of mbretrieve.*index again"):
        ColBERT.from_pretrained("mbretrieve/mini-v1")


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "/nowhere/at/all", "~/nowhere", "a--b/c", Path("nowhere")])
def test_a_path_that_is_not_there_is_no_name_of_the_hub(name: str | Path) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        ColBERT.from_pretrained(name)


def test_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="neither a folder nor in the local cache") as error:
        ColBERT.from_pretrained("owner/model", local_files_only=True)
    assert "\n" not in str(error.value)
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--owner--model"
    made = small.pylate(cached / "snapshots" / commit)
    small.write(cached / "refs" / "main", 0)
    (cached / "refs" / "main").write_text(commit)
    model = ColBERT.from_pretrained("owner/model", local_files_only=True, device="cpu", dtype="float32")
    assert (model.identity.name, model.identity.revision) == ("owner/model", commit)
    assert_same(model, load(made))
    with pytest.raises(ModelError, match=r"at revision 2\.0 is neither"):
        ColBERT.from_pretrained("owner/model", revision="2.0", local_files_only=True)
    with pytest.raises(ModelError, match="has no revisions"):
        ColBERT.from_pretrained(made, revision="2.0")
