"""Bases on the Hugging Face hub: cached, downloaded, or the reason why neither is possible.

The token comes from HF_TOKEN (or `hf auth login`), the hub's address from HF_ENDPOINT and the cache's
folder from HF_HOME, as for huggingface_hub itself.

Over 250 lines: a download, and each way in which it fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from json import JSONDecodeError
from pathlib import Path

from tasks.contracts.errors import BaseModelError
from tasks.contracts.recipe import Base
from tasks.contracts.units import GIB
from tasks.models import weight_files
from tasks.models.json_files import read_object

# The files of a base beside its weights (tasks.models.weight_files); other weights are not downloaded.
COMPANION_FILES = (
    *("*.json", "*.model", "*.jinja", "*.txt"),
    *("LICENSE*", "NOTICE*", "USE_POLICY*"),
)


def cached(base: Base) -> Path | None:
    """The snapshot of the pinned revision on this machine, whose weights may be missing. Asks no server.

    Raises BaseModelError when `base.model` is no hub name, or is not pinned.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    _require_pinned(base)
    try:
        snapshot = snapshot_download(
            base.model,
            revision=base.revision,
            allow_patterns=[*COMPANION_FILES],  # of the weights the caller knows which are needed
            local_files_only=True,
        )
    except LocalEntryNotFoundError:
        return None
    return Path(snapshot)


def fetch(base: Base) -> Path:
    """The snapshot of the pinned revision; what this machine lacks is downloaded.

    Raises BaseModelError with the reason why it cannot be downloaded, and the fix.
    """
    from huggingface_hub import HfApi, snapshot_download

    _require_pinned(base)
    try:
        names = HfApi().list_repo_files(base.model, revision=base.revision)
        if problems := _missing(base, names):
            raise BaseModelError("\n".join(problems))
        wanted = weight_files.wanted_on_hub(names, _is_companion, lambda: _index(base))
        return Path(snapshot_download(base.model, revision=base.revision, allow_patterns=wanted))
    except _failures() as error:
        raise BaseModelError(_reason(base, error)) from error


def ask(base: Base) -> tuple[list[str], list[str]]:
    """Facts about a base that a run would download, and what would prevent that. Downloads nothing."""
    from huggingface_hub import HfApi, auth_check

    try:
        _require_pinned(base)
        # Anyone may read a gated model's description: only the second request checks access.
        info = HfApi().model_info(base.model, revision=base.revision, files_metadata=True)
        auth_check(base.model)
    except BaseModelError as error:
        return [], [str(error)]
    except _failures() as error:
        return [], [_reason(base, error)]
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    if problems := _missing(base, list(sizes)):
        return [], problems
    # Nothing is downloaded, the index neither: shards have names of this form.
    shards = [name for name in sizes if fnmatch(name, "model-*-of-*.safetensors")]
    wanted = weight_files.wanted_on_hub(sizes, _is_companion, lambda: shards)
    size = sum(sizes.get(name, 0) for name in wanted) / GIB
    return [
        f"base: {base.model} would be downloaded from the hub ({size:.2f} GiB); its memory, its "
        "context and lengths in tokens are known once it is here"
    ], []


def _is_companion(file: str) -> bool:
    return any(fnmatch(file, pattern) for pattern in COMPANION_FILES)


def _index(base: Base) -> list[str]:
    """The weight files that the repository's index names; the index alone is downloaded."""
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(base.model, weight_files.INDEX, revision=base.revision))
    return weight_files.shards_in(read_object(path), path)


def _missing(base: Base, files: Sequence[str]) -> list[str]:
    """The same problems as `base_checks.file_problems` finds in a folder."""
    where = f"{base.model} on the hub, at revision {base.revision},"
    weights = {weight_files.SINGLE, weight_files.INDEX} & set(files)
    if weights == {weight_files.INDEX} and not any(f.endswith(".safetensors") for f in files):
        weights = set()
    if weight_files.ADAPTER_CONFIG in files and not weights:
        return [
            f"{where} is an adapter, not a model; name the base that its {weight_files.ADAPTER_CONFIG} "
            "names, or merge the adapter into it first and name the result"
        ]
    kinds = {
        "config.json": ["config.json"],
        "tokenizer.json": ["tokenizer.json", "tokenizer.model"],
    }
    problems = [
        f"{where} has no {kind}; pin another revision, or save it in that form and name the folder"
        for kind, any_of in kinds.items()
        if not set(any_of) & set(files)
    ]
    return problems if weights else [*problems, weight_files.no_weights(where, files)]


def _require_pinned(base: Base) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    no_folder = f"base.model {base.model!r}: no such folder (looked in {Path.cwd()})"
    if base.model.count("/") != 1 or base.model.startswith((".", "/", "~")):
        hint = "correct the path"
        if "://" in base.model:
            hint = "name a folder, or a model of the hub as owner/name without its address"
        elif base.model.startswith("~") or "$" in base.model:
            hint = "write the path out: ~ and variables are not replaced"
        raise BaseModelError(f"{no_folder}; {hint}")
    try:
        validate_repo_id(base.model)
    except HFValidationError as error:
        raise BaseModelError(
            f"{no_folder}, and no name of a hub model ({error}); correct it"
        ) from None
    if not base.revision:
        raise BaseModelError(
            f"base.model {base.model!r} is a hub name: pin it with base.revision (a commit), "
            "or point it at a local folder"
        )


def _failures() -> tuple[type[Exception], ...]:
    import httpx
    from huggingface_hub.errors import XetDownloadError

    return (
        httpx.HTTPError,  # the hub's refusals, no network
        XetDownloadError,  # its own way to large files
        JSONDecodeError,  # another kind of server answered
        OSError,  # offline mode, a cache that cannot be written
    )


def _reason(base: Base, error: BaseException) -> str:
    """Why the hub does not give a base, with the fix."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__  # the reason why only the cache was searched
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"{base.model} at revision {base.revision} is not, or not completely, in this machine's cache "
            f"({_cache()}), and HF_HUB_OFFLINE keeps precis from asking the hub: unset it, or copy the "
            f"model here and set base.model to the folder ({_download(base)} fetches it elsewhere)"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(base, error)
    if isinstance(error, (JSONDecodeError, errors.FileMetadataError)):
        return (
            f"{_endpoint()} does not answer as a hub does; correct HF_ENDPOINT, or look for a proxy "
            "in between (a login page?)"
        )
    if isinstance(error, OSError):
        return (
            f"{base.model} could not be stored in {_cache()}: {error}; free some space there, or set "
            "HF_HOME to another disk"
        )
    return (
        f"base.model {base.model!r} is no folder here ({Path.cwd()}), and the hub ({_endpoint()}) "
        f"cannot be reached: {type(error).__name__}: {error}; connect this machine, or copy the model "
        f"here and set base.model to the folder ({_download(base)} fetches it elsewhere)"
    )


def _refusal(base: Base, error: BaseException) -> str:
    """Why the hub refused: see https://huggingface.co/docs/hub/models-gated."""
    from huggingface_hub import errors, get_token

    assert isinstance(error, errors.HfHubHTTPError)
    page, token, status = f"{_endpoint()}/{base.model}", get_token(), error.response.status_code
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{base.model} is on the hub, but has no revision {base.revision}; copy a commit from "
            f"{page}/commits/main into base.revision"
        )
    if token and error.server_message and "Invalid credentials" in error.server_message:
        return (
            "the hub does not know the token in HF_TOKEN (mistyped, expired or revoked); make a new "
            f"one at {_endpoint()}/settings/tokens"
        )
    if isinstance(error, errors.GatedRepoError):
        return _gated(base, page, token is not None)
    if isinstance(error, errors.RepositoryNotFoundError):
        reason = (
            "hidden from the account of HF_TOKEN" if token else "private, and no HF_TOKEN is set"
        )
        return (
            f"base.model {base.model!r} is no folder here ({Path.cwd()}), and the hub has no such "
            f"model, or it is {reason}; correct the name, or set HF_TOKEN to a token that can read it"
        )
    later = "the hub has a fault: try again later, " if status >= 500 else ""
    return (
        f"the hub refuses {base.model} with status {status}: {error.server_message or error}; {later}"
        f"see {page}"
    )


def _gated(base: Base, page: str, token: bool) -> str:
    if token:
        return (
            f"{base.model} is gated, and the account of HF_TOKEN may not read it: accept its licence "
            f"at {page} as that account and wait until it is granted (a fine-grained token must also "
            "allow reading gated repositories)"
        )
    return (
        f"{base.model} is gated, and no token is set: accept its licence at {page}, then set HF_TOKEN "
        f"to a token of that account ({_endpoint()}/settings/tokens)"
    )


def _download(base: Base) -> str:
    return f"hf download {base.model} --revision {base.revision}"


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
