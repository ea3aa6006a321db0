"""Where a checkpoint's files come from: a folder of this machine, the embedded model, or a repository of the hub.

First stop of every `from_pretrained`: an `Origin` and a file name go in, the path of a local file comes out. A hub file
is downloaded once and then read from the hub library's cache, which other programs on this machine share.
"""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from gemlens.assets import MODEL, MODEL_NAME
from gemlens.errors import CheckpointError, InputError

# Real configs and indexes stay below 1 MB; whatever is this large is not one and would only fill the memory.
_LARGEST_JSON = 25_000_000
_REPOSITORY_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_LOGIN = "log in with 'hf auth login' or pass token=..."


@dataclass(frozen=True)
class Origin:
    """A folder, or a repository of the hub at one revision, from which files are taken by name.

    An existing folder wins over a repository of the same name, and the embedded model is a folder, too: `revision`,
    `token`, `cache_dir` and `local_files_only` then mean nothing.

    Args:
        path_or_id: a folder, a repository id such as `"google/gemma-3-4b-it"`, or `"gemlens-tiny"`.
        revision: branch, tag or commit of the repository.
        subfolder: folder inside the folder or repository that holds the files.
        token: access token for gated or private repositories; None uses the one of `hf auth login`, False none.
        cache_dir: where downloads are kept; None: where the hub library keeps them.
        local_files_only: use only what was downloaded earlier, without asking the hub.

    Raises:
        InputError: `path_or_id` is empty or a file, or `subfolder` or `revision` leads out of its place.
        CheckpointError: `path_or_id` is neither a folder nor a well-formed repository id.
    """

    path_or_id: str | os.PathLike[str]
    revision: str | None = "main"
    subfolder: str = ""
    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False

    def __post_init__(self) -> None:
        place = os.fspath(self.path_or_id)
        if not place:
            raise InputError("An empty name was given; pass a folder or a repository id like 'google/gemma-3-4b-it'.")
        if os.path.isfile(place):  # noqa: PTH113 - Path.is_file raises for some odd names
            raise InputError(f"'{place}' is a file; pass the folder that holds it.")
        for part in (self.subfolder, self.revision):
            if part:
                _check_inside(part)
        is_id = not isinstance(self.path_or_id, os.PathLike) and _REPOSITORY_ID.fullmatch(place)
        if self.folder is None and not is_id:
            raise CheckpointError(
                f"'{place}' is neither an existing folder nor a repository id like 'google/gemma-3-4b-it'; "
                "check the spelling and the current folder."
            )

    @property
    def folder(self) -> Path | None:
        """The local folder, `subfolder` included; None for a repository."""
        place = os.fspath(self.path_or_id)
        if os.path.isdir(place):  # noqa: PTH112 - as above
            return Path(place, self.subfolder or "")
        return Path(MODEL, self.subfolder or "") if self.path_or_id == MODEL_NAME else None

    def __str__(self) -> str:
        if self.folder is not None:
            return f"the folder '{self.folder}'"
        inside = f", folder '{self.subfolder}'" if self.subfolder else ""
        return f"the repository '{self.path_or_id}' (revision '{self._revision}'{inside})"

    def find(self, filename: str) -> Path | None:
        """The local path of a file, downloaded if need be; None if the origin exists but has no such file.

        Raises:
            InputError: `filename` leads out of the folder.
            CheckpointError: the origin cannot be read: no such repository or revision, no access, no network.
        """
        _check_inside(filename)
        if self.folder is None:
            return self._download(filename)
        path = self.folder / filename
        return path if os.path.isfile(path) else None  # noqa: PTH113 - as above

    def fetch(self, filename: str) -> Path:
        """As `find`, for a file that must be there.

        Raises:
            CheckpointError: also if there is no such file.
        """
        path = self.find(filename)
        if path is None:
            where = f"{self} as downloaded earlier" if self._offline else f"{self}"
            raise CheckpointError(f"There is no '{filename}' in {where}; check that this is the folder of a model.")
        return path

    def listing(self) -> list[str]:
        """Names of the files there, for error messages; empty when the hub may not or cannot be asked."""
        if self._offline:
            return []
        try:
            if self.folder is not None:
                return sorted(path.name for path in self.folder.iterdir() if path.is_file())
            from huggingface_hub import HfApi

            names = HfApi(token=self.token).list_repo_files(os.fspath(self.path_or_id), revision=self._revision)
        except Exception:  # the caller is about to raise; whatever fails here must not hide that
            return []
        prefix = f"{self.subfolder}/" if self.subfolder else ""
        return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))

    @property
    def _revision(self) -> str:
        return self.revision or "main"

    @property
    def _offline(self) -> bool:
        if self.folder is not None:
            return False
        from huggingface_hub import constants

        return self.local_files_only or bool(constants.HF_HUB_OFFLINE)

    def _download(self, filename: str) -> Path | None:
        from huggingface_hub import errors, hf_hub_download

        repository = os.fspath(self.path_or_id)
        try:
            path = hf_hub_download(
                repository,
                filename,
                subfolder=self.subfolder or None,
                revision=self._revision,
                token=self.token,
                cache_dir=self.cache_dir,
                local_files_only=self.local_files_only,
                library_name="gemlens",
            )
        except errors.LocalEntryNotFoundError as error:  # before its parent EntryNotFoundError: nobody was asked
            self._check_known_without_network(filename, error)
            return None
        except errors.EntryNotFoundError:
            return None
        except errors.GatedRepoError as error:
            raise CheckpointError(
                f"'{repository}' is gated: accept its terms on its page of the hub, then {_LOGIN}."
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise CheckpointError(
                f"'{repository}' is no folder here and no repository that you can see on the hub; "
                f"check the spelling, or, if it is private, {_LOGIN}."
            ) from error
        except errors.RevisionNotFoundError as error:
            raise CheckpointError(
                f"'{repository}' has no revision '{self._revision}'; pass the name of a branch, a tag or a commit."
            ) from error
        except errors.LocalTokenNotFoundError as error:
            raise CheckpointError(f"token=True was passed but nobody is logged in; {_LOGIN}.") from error
        except Exception as error:  # the hub library lets through whatever its HTTP client, version by version, raises
            raise CheckpointError(
                f"'{filename}' of '{repository}' could not be downloaded ({first_line(error)}); "
                "check the connection, the access rights and the free disk space, then try again."
            ) from error
        return Path(path)

    def _check_known_without_network(self, filename: str, error: Exception) -> None:
        """Returns if the cache can tell that the repository has no such file; else raises the reason."""
        from huggingface_hub import _CACHED_NO_EXIST, snapshot_download, try_to_load_from_cache
        from huggingface_hub.errors import LocalEntryNotFoundError

        repository = os.fspath(self.path_or_id)
        path = f"{self.subfolder}/{filename}" if self.subfolder else filename
        cached = try_to_load_from_cache(repository, path, cache_dir=self.cache_dir, revision=self._revision)
        if cached is _CACHED_NO_EXIST:
            return
        if not self._offline:
            answer = getattr(error.__cause__, "response", None)  # whichever HTTP client's, if there was an answer
            said = "was not reached" if answer is None else f"answered {answer.status_code}"
            raise CheckpointError(
                f"'{filename}' of '{repository}' is not on this machine and the hub {said}; check the connection and "
                "the access rights, or pass local_files_only=True to do with what was downloaded earlier."
            ) from error
        try:  # Who asked to stay offline means: what was downloaded is all there is.
            snapshot_download(repository, revision=self._revision, cache_dir=self.cache_dir, local_files_only=True)
        except LocalEntryNotFoundError as nothing:
            raise CheckpointError(
                f"Nothing of {self} was downloaded to this machine earlier, and the hub may not be asked; "
                "allow downloads once (local_files_only=False, HF_HUB_OFFLINE unset), or pass a local folder."
            ) from nothing


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: the file is missing, far too large, not JSON, or holds something else than an object.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise CheckpointError(f"'{path}' is larger than {_LARGEST_JSON} bytes; this is no file of a model.")
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # ValueError: JSON and UTF-8 errors, numbers of 5,000 digits
        raise CheckpointError(f"'{path}' is not valid JSON ({first_line(error)}); download it again.") from error
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"'{path}' cannot be read ({error.strerror}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' holds a JSON {type(content).__name__}, but an object was expected.")
    return content


def _check_inside(path: str) -> None:
    """Refuses names that lead out of the folder that they are joined to, on any system."""
    escapes = ".." in PurePosixPath(path).parts or "\\" in path or "\0" in path
    if not path or escapes or PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive:
        raise InputError(f"{path!r} is not a name inside a model's folder; pass a relative name without '..'.")


def first_line(error: Exception) -> str:
    """What an error of another library says, short enough to stand inside a sentence."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
