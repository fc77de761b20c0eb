"""From a model's name to a folder with its files: the bundled model, a local folder, or a snapshot from the Hub."""

import re
from pathlib import Path
from typing import NamedTuple

from mbretrieve.errors import ModelError

BUNDLED = "mbretrieve/mini-v3"
"""The name of the model inside this package, which is what no name at all means."""

_ASSETS = Path(__file__).parent.parent / "assets"
_HUB_NAME = re.compile(r"(?:[A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_][\w.-]*", re.ASCII)
# Only what a layout reads, and the card: never a pickle, no exports to other runtimes, no training states.
_ALLOWED = ["*.json", "*.safetensors", "artifact.metadata", "README.md"]
_IGNORED = ["onnx/*", "openvino/*", "checkpoint-*/*", "runs/*"]


class Source(NamedTuple):
    """Where a model's files lie, the name under which it can be loaded again, and on the Hub its commit."""

    folder: Path
    name: str
    revision: str | None


def locate(name: str | Path | None, revision: str | None = None, local_files_only: bool = False) -> Source:
    """Find a model: None is the bundled one; a folder that exists is taken as it is; else ``name`` is one on the Hub.

    Raises: ModelError, one line, if there is no such folder, the Hub has no such model or cannot be reached.
    """
    if name is None or name == BUNDLED:
        return Source(_ASSETS / "mini-v3", BUNDLED, None)
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ModelError(f"{name} is a local folder, which has no revisions: leave revision={revision!r} out")
        return Source(path, str(path.resolve()), None)
    if str(name).startswith(BUNDLED.rstrip("0123456789")):
        raise ModelError(
            f"{name} came with another version of mbretrieve, this one has {BUNDLED}: index again, or install that one"
        )
    if isinstance(name, Path) or not _is_hub_name(name):
        raise ModelError(
            f"there is no folder {name}: name a model folder, or a model of the Hugging Face Hub (owner/name)"
        )
    return _snapshot(name, revision, local_files_only)


def _is_hub_name(name: str) -> bool:
    """Owner and model, or an old model's single name, in the Hub's characters; a path that is not there is no name."""
    return len(name) <= 96 and _HUB_NAME.fullmatch(name) is not None and "--" not in name and ".." not in name


def _snapshot(name: str, revision: str | None, local_files_only: bool) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"{name} at revision {revision}" if revision else name
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            local_files_only=local_files_only,
            allow_patterns=_ALLOWED,
            ignore_patterns=_IGNORED,
        )
    except GatedRepoError as error:
        raise ModelError(
            f"{name} asks for a login on the Hugging Face Hub: accept its terms, then `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{name} has no revision {revision!r} on the Hugging Face Hub") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"there is no folder {name} here and no model {name} on the Hugging Face Hub") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        why = "only local files were asked for" if local_files_only else "the Hugging Face Hub cannot be reached"
        raise ModelError(
            f"{at} is neither a folder nor in the local cache, and {why}; name a model's folder"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"{at} cannot be fetched from the Hugging Face Hub: {' '.join(str(error).split())}") from error
    return Source(Path(folder), name, Path(folder).name)
