"""sentence-transformers' modules.json: the modules that a text passes, whatever package each class lives in now."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mbretrieve.errors import ModelError
from mbretrieve.models.files import read_json, read_json_list

MODULES = "modules.json"
BERT_CONFIG = "sentence_bert_config.json"

# A module's class counts by its last name: sentence-transformers has moved its modules more than once.
_PACKAGES = ("sentence_transformers", "pylate")


@dataclass(frozen=True, slots=True)
class Module:
    """An entry of modules.json: the class's last name, the module's folder and its configuration."""

    kind: str
    folder: Path
    config: Mapping[str, Any]


def modules_of(folder: Path, task: str) -> list[Module]:
    """List the modules that a task's texts pass, a Router replaced by its route."""
    found: list[Module] = []
    for entry in read_json_list(folder / MODULES):
        module = _module(folder, str(entry.get("type")), str(entry.get("path", "")))
        found += _route(module, task) if module.kind in ("Router", "Asym") else [module]
    return found


def _module(folder: Path, type_name: str, path: str) -> Module:
    package, *_, kind = type_name.split(".")
    if package not in _PACKAGES:
        raise ModelError(
            f"{folder}: {MODULES} names {type_name}, code outside of {' and '.join(_PACKAGES)}, which is not run"
        )
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path:
        raise ModelError(f"{folder}: {MODULES} names the folder {path!r}, expected one inside the model's folder")
    place = folder / parts
    names = {"Transformer": BERT_CONFIG, "Router": "router_config.json"}
    return Module(kind, place, read_json(place / names.get(kind, "config.json")))


def _route(router: Module, task: str) -> list[Module]:
    config = router.config or read_json(router.folder / "config.json")
    types, structure, parameters = (config.get(key) or {} for key in ("types", "structure", "parameters"))
    if parameters.get("route_mappings"):
        raise ModelError(f"{router.folder}: route_mappings of a Router are not supported, expected query and document")
    route = task if task in structure else parameters.get("default_route") or next(iter(structure), None)
    if route not in structure or not all(name in types for name in structure[route]):
        raise ModelError(f"{router.folder}: the Router has no route for a {task}")
    return [_module(router.folder, str(types[name]), str(name)) for name in structure[route]]


def transformer_of(modules: Sequence[Module]) -> Module:
    """Return the backbone, the first module of the list, or raise ModelError."""
    if not modules or modules[0].kind != "Transformer":
        raise ModelError(f"{MODULES} starts with {modules[0].kind if modules else 'nothing'}, expected a Transformer")
    return modules[0]


def expect_order(folder: Path, modules: Iterable[Module], order: Sequence[str]) -> None:
    """Raise ModelError unless the modules are of these kinds and come in this order."""
    place = 0
    for module in modules:
        if module.kind not in order:
            raise ModelError(f"{folder}: a {module.kind} module is not supported, expected {', '.join(order)}")
        if order.index(module.kind) < place:
            raise ModelError(
                f"{folder}: {module.kind} comes behind {order[place]}, expected the order {', '.join(order)}"
            )
        place = order.index(module.kind)


def normalizes(module: Module) -> str:
    """Return the name of the vectors that a Normalize module scales."""
    return str(module.config.get("module_input_name", "sentence_embedding"))


def expect_names(module: Module, name: str, default: str = "token_embeddings") -> None:
    """Raise ModelError unless a Dense module reads the vectors of this name and puts its own in their place."""
    reads = module.config.get("module_input_name", default)
    writes = module.config.get("module_output_name") or reads
    if (reads, writes) != (name, name):
        raise ModelError(f"{module.folder}: Dense reads {reads} and writes {writes}, expected {name}")
