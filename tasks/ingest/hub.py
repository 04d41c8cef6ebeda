"""Datasets of the Hugging Face hub, by a pinned revision."""

from __future__ import annotations

from pathlib import Path

from tasks.contracts.errors import DataError


def pinned(key: str, spec: str, revision: str | None) -> tuple[str, str]:
    """The dataset's name and revision. Raises DataError when either is missing or malformed."""
    name = spec.removeprefix("hub:")
    if name.count("/") != 1 or not all(name.split("/")):
        raise DataError(f"{key}: {spec} is not hub:owner/name; correct it")
    if not revision:
        raise DataError(
            f"{key}: {spec} is a hub dataset: pin it with data.revision (a commit), so that the "
            "same recipe means the same rows tomorrow"
        )
    return name, revision


def download(key: str, spec: str, revision: str | None, split: str, scratch: Path) -> Path:
    """One split of the dataset as a Parquet file in `scratch`.

    Raises DataError when the hub cannot be reached, or has no such dataset, revision or split.
    """
    name, commit = pinned(key, spec, revision)
    if Path(name).exists():  # datasets would read it in place of the hub's, whatever the revision
        raise DataError(
            f"{key}: {spec}: there is a folder {name} in {Path.cwd()}; name it without hub:, or run "
            "elsewhere"
        )
    # The file's stem names rows that have no id of their own.
    path = scratch / f"{split.replace('/', '_')}.parquet"
    try:
        load(name, commit, split, path)
    except _failures() as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{key}: {spec} (revision {commit}, split {split}) cannot be loaded: {reason}; check "
            "the name, data.revision, the split, the network and HF_TOKEN, or download it and "
            "name the folder"
        ) from error
    return path


def load(name: str, revision: str, split: str, path: Path) -> None:
    """One split of a dataset, as `datasets` loads it, into a Parquet file."""
    import datasets

    datasets.load_dataset(name, revision=revision, split=split).to_parquet(str(path))


def _failures() -> tuple[type[Exception], ...]:
    import datasets
    import pyarrow
    from huggingface_hub.errors import HfHubHTTPError

    return (
        datasets.exceptions.DatasetsError,  # no such dataset, gated, broken while generating
        HfHubHTTPError,
        OSError,  # no network, cache not writable
        ValueError,  # no such split, or several configurations
        RuntimeError,  # a script dataset, which this version does not run
        pyarrow.ArrowException,
    )
