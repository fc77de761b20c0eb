"""Imports point one way, inside the functions too: design.md's table, held."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mbretrieve"

# A room may import the rooms of earlier lines and itself, never a sibling on its own line.
LAYERS = [
    ["errors", "types", "compiled", "cores"],
    ["scoring", "training.recipe", "jsonl"],
    [
        "models",
        "index",
        "corpus",
        "cutting",
        "evaluation.metrics",
        "evaluation.suites",
        "evaluation.datasets",
        "evaluation.report",
        "evaluation.bm25",
        "evaluation.significance",
        "evaluation.trec",
        "evaluation.exact",
        "evaluation.encoding",
        "evaluation.rerankers",
        "evaluation.provenance",
        "training.config",
        "training.losses",
        "training.gradcache",
        "training.gathering",
        "training.schedule",
        "training.optim",
        "training.masking",
        "training.packed_sequences",
    ],
    [
        "retriever",
        "training.data",
        "training.pairs",
        "training.student",
        "training.curves",
        "training.validation",
        "training.state",
        "training.masked_lm",
        "training.tiling",
        "training.tokenizer_training",
        "training.pretrain_config",
    ],
    [
        "folder",
        "evaluation.runner",
        "training.mining",
        "training.finders",
        "training.preview",
        "training.texts",
        "training.objective",
        "training.running",
    ],
    ["evaluation.searchers", "training.token_store", "training.steps", "training.setup", "bench"],
    ["training.masked_steps", "training.pretrain_start", "training.books"],
    ["training.loop", "training.pretrain", "training.pretrain_preview"],
    ["serve", "cluster", "integrations", "cli"],
    ["__main__"],
]
PARENTS = {"mbretrieve", "mbretrieve.evaluation", "mbretrieve.training"}  # packages of rooms, no rooms themselves
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# errors may be used by types and the reverse: one line, no logic. evaluation's data rooms share its records.
SAME_LEVEL_ALLOWED = {("evaluation.suites", "evaluation.datasets"), ("evaluation.datasets", "evaluation.suites")}


def room_of(module: str) -> str | None:
    """Return the room of a dotted module inside the package, or None for the root and for rooms' own __init__."""
    parts = module.split(".")[1:]
    for size in (2, 1):
        name = ".".join(parts[:size])
        if len(parts) >= size and name in LEVEL:
            return name
    return None


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found += [f"{module}.{alias.name}" for alias in node.names] if module in PARENTS else [module]
    return [name for name in found if name.split(".")[0] == "mbretrieve"]


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    if module == "mbretrieve":
        return  # the root resolves its public names lazily; no room imports it
    own = room_of(module)
    if own is None:
        assert path.name == "__init__.py", f"{module} is in no room of the layer table: place it"
    for name in imports(path):
        if name in ("mbretrieve.__version__",):
            continue
        target = room_of(name)
        assert target is not None, f"{module} imports {name}, which is in no room"
        if own is None or target == own or (own, target) in SAME_LEVEL_ALLOWED or {own, target} == {"errors", "types"}:
            continue
        assert LEVEL[target] < LEVEL[own], f"{module} imports {name}: {own} may not import {target}"


def test_every_room_is_seen() -> None:
    assert {"errors", "types", "models", "index", "corpus", "cli"} <= {
        room_of(".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"))
        for p in MODULES
    }


def test_the_root_names_at_most_ten_public_names() -> None:
    import mbretrieve

    assert len(mbretrieve.__all__) <= 10
    assert all(hasattr(mbretrieve, name) for name in mbretrieve.__all__)
