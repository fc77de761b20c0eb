"""What several commands take: one definition each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from mbretrieve.types import Encoder, Kind, ModelIdentity

Command = TypeVar("Command", bound=Callable[..., Any])

index_option = click.option(
    "--index",
    "index",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The index folder. Default: one in your cache folder (MBRETRIEVE_CACHE) for each indexed path.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output and nothing else.")
memory_option = click.option("--memory", metavar="SIZE", help="Work in so much beside the model. Default: 2GiB.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
include_option = click.option("--include", multiple=True, metavar="GLOB", help="Only files that match (repeatable).")
exclude_option = click.option("--exclude", multiple=True, metavar="GLOB", help="No files that match (repeatable).")


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The model as named on the command line; what is None is the index's, or the bundled model's."""

    name: str | None
    kind: "Kind | None"
    device: str | None
    dtype: str | None

    @property
    def loading(self) -> dict[str, Any]:
        """Where and how to load, for ``from_pretrained``."""
        return {"device": self.device, "dtype": self.dtype}

    def load(self, held: "ModelIdentity | None" = None) -> "Encoder":
        """Load the chosen model; what was not chosen is as in the identity that an index holds.

        Raises: ModelError if there is no such model, or it is not one.
        """
        from mbretrieve.models import load_encoder

        kind = self.kind or (held.kind if held else "colbert")
        if self.name is not None or held is None:
            return load_encoder(kind, self.name, **self.loading)
        shape: dict[str, Any] = {}
        if kind == held.kind:
            shape = {"dim": held.dim, "query_length": held.query_length, "document_length": held.document_length}
        return load_encoder(kind, held.name, revision=held.revision, **shape, **self.loading)


def model_options_of(*kinds: str) -> Callable[[Command], Command]:
    """Return what adds ``--model``, ``--kind`` (one of these), ``--device`` and ``--dtype`` to a command, which gets
    them as they are named."""

    def add(command: Command) -> Command:
        for option in (
            click.option(
                "--dtype",
                type=click.Choice(["float32", "bfloat16", "float16", "int8"]),
                help="Default: the device's best. int8: on a CPU, faster for large models.",
            ),
            click.option(
                "--device",
                metavar="NAME,...",
                help="cpu, cuda, cuda:1, mps ... Several: a process each for documents. Default: the best there is.",
            ),
            click.option(
                "--kind",
                type=click.Choice(kinds),
                help="A vector a token, one a text, or both: found by the one, ranked by the others.",
            ),
            click.option(
                "--model", metavar="NAME", help="A model's folder or Hugging Face name. Default: the bundled one."
            ),
        ):
            command = option(command)
        return command

    return add


model_options = model_options_of("colbert", "dense", "joint")
