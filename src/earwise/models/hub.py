"""Models named as on a hub, `ORGANISATION/MODEL` or `ORGANISATION/MODEL@REVISION`: finds and fetches them. No torch.

Wherever a model is named (`--model`, a recipe's `model.name` and `model.weights`, the base of an adapter), a name that
is no folder here and looks like one of a hub is handed to huggingface_hub, which keeps what it fetched in its cache
(`HF_HOME`) and honours `HF_HUB_OFFLINE`. Only safetensors and the small text files beside them are fetched: a pickle
can run code when it is read. A name without revision means the newest one; results and recipes record the commit that
was used.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from earwise.errors import ModelError

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""Patterns of the files of a model that are fetched."""
CONFIG_FILES = ("config.json", "adapter_config.json", "preprocessor_config.json")
"""Those that say which family a model is of and how large it is."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model of a hub that is here now.

    Attributes:
        folder: Its files, in the cache of huggingface_hub.
        name: `ORGANISATION/MODEL@COMMIT`, which names the same files for ever.
    """

    folder: Path
    name: str


def has_form(name: str) -> bool:
    """Whether a name has the form of one on a hub; a relative path of two parts has it too."""
    return _NAME.fullmatch(name) is not None


def is_hub_name(name: str) -> bool:
    """Whether a name means a model of a hub: it has the form of one, and its first part is no folder here, so that a
    mistyped path below an existing folder is not looked up on a hub.

    >>> [is_hub_name(name) for name in ("Qwen/Qwen2-Audio-7B-Instruct@refs/pr/1", "qwen2_audio", "./a/b", "a/b/c")]
    [True, False, False, False]
    """
    return has_form(name) and not Path(name.partition("/")[0]).exists()


def split_name(name: str) -> tuple[str, str | None]:
    """Repository and revision of a hub name; None if it has no revision."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


def with_revision(name: str, revision: object) -> str:
    """A hub name with a revision that stands apart from it, as in PEFT's config; other names stay as they are."""
    return f"{name}@{revision}" if revision and "@" not in name and has_form(name) else name


def fetch(name: str, *, files: tuple[str, ...] = FILES) -> HubModel:
    """Fetch a model, unless it is in the cache.

    Args:
        name: Hub name, see above.
        files: Patterns of the files that are needed.
    Raises:
        ModelError: if it is neither in the cache nor can it be fetched; in one line, with the reason.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    repository, revision = split_name(name)
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except GatedRepoError as error:
        raise ModelError(
            f"{name}: its publisher wants its terms accepted first; do so on its page, then `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{name}: the hub has {repository}, but no revision {revision!r}; correct it") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{name}: no such folder here, and no such model on the hub; check the name") from error
    except (OSError, ValueError, HfHubHTTPError) as error:
        # huggingface-hub 1.33 asks the hub for a list of files even if a pinned revision is in the cache.
        if (cached := _cached_folder(repository, revision, files)) is not None:
            return HubModel(cached, f"{repository}@{commit_of(cached) or revision or 'main'}")
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE forbids fetching it"
        else:
            reason = f"cannot be fetched from a model hub ({_reason(error)})"
        raise ModelError(
            f"{name}: no such folder here, not in the cache {constants.HF_HUB_CACHE}, and {reason}; give the folder "
            "of a checkpoint, or set HF_HOME to a cache that has it"
        ) from error
    return HubModel(folder, f"{repository}@{commit_of(folder) or revision or 'main'}")


def _cached_folder(repository: str, revision: str | None, files: tuple[str, ...]) -> Path | None:
    """The folder of a model in the cache; None if it is not there, or not whole."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files), local_files_only=True))
    except (OSError, ValueError):
        return None


def commit_of(folder: Path) -> str | None:
    """The commit whose files a folder of the cache holds; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def cached_name(folder: Path) -> str | None:
    """The pinned hub name of a folder of the cache; None for any other folder.

    >>> cached_name(Path("hub/models--Qwen--Qwen2-Audio-7B/snapshots/0123abc"))
    'Qwen/Qwen2-Audio-7B@0123abc'
    """
    commit, repository = commit_of(folder), folder.parent.parent.name
    if commit is None or not repository.startswith("models--"):
        return None
    return f"{repository.removeprefix('models--').replace('--', '/', 1)}@{commit}"


def _reason(error: Exception) -> str:
    """The first line of an error's message, without what names the error again."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].removeprefix("Got: ")[:160]
