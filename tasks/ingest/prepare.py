"""Raw data to a folder of canonical rows, and the same as a check that leaves nothing behind."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.contracts import digest
from tasks.contracts.errors import DataError, PrecisError
from tasks.contracts.recipe import Data, Prompt
from tasks.contracts.records import DatasetRef
from tasks.ingest.build import EVALUATION, REJECTS, TRAIN, Built, build
from tasks.ingest.sources import source_digest
from tasks.ingest.token_lengths import meter_for

if TYPE_CHECKING:
    from tasks.serving.summarizer import SummarizerSettings

__all__ = ["look", "prepare", "problems", "source_digest"]
REPORT = "report.json"


def prepare(
    data: Data, prompt: Prompt, settings: SummarizerSettings, tokenizer_folder: Path, folder: Path
) -> DatasetRef:
    """Read the recipe's sources and write `folder`: canonical rows, rejects and the data report.

    `train.jsonl` and `evaluation.jsonl` hold a `Row` a line, `rejects.jsonl` every row set aside
    (file, line, problem, raw), `report.json` the data report. The same input gives the same bytes.
    Texts are as they came, but for CRLF, which becomes LF.

    Raises DataError with all problems of the input at once (sources and columns first, then rows;
    the rejects file is there either way), RecipeError when the prompt template alone is too long
    or the similarity too low to be found, BaseModelError when there is no tokenizer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (TRAIN, EVALUATION, REJECTS, REPORT):
        (folder / name).unlink(missing_ok=True)
    meter = meter_for(tokenizer_folder, settings, prompt)
    with tempfile.TemporaryDirectory(prefix="precis-ingest-") as scratch:
        built = build(data, meter, folder, Path(scratch))
    if built.problems:
        if built.counts.get("rejected"):
            built.problems.append(f"every row set aside is in {folder / REJECTS}")
        raise DataError.of(built.problems)
    text = json.dumps(built.report, indent=2, ensure_ascii=False)
    (folder / REPORT).write_text(text + "\n", encoding="utf-8")
    return _reference(folder, built)


def look(
    data: Data,
    prompt: Prompt,
    settings: SummarizerSettings | None = None,
    tokenizer_folder: Path | None = None,
) -> Built:
    """What would stop `prepare`, row counts once rows could be read, and the report; nothing is kept.

    Counts are train_rows, evaluation_rows, rejected, duplicates and overlap. Reads everything.
    Without settings and tokenizer (a base that was not found) nothing is measured in tokens, and
    rows too long for `prompt.truncate: error` go unnoticed.
    """
    with tempfile.TemporaryDirectory(prefix="precis-check-") as scratch:
        try:
            meter = None
            if settings is not None and tokenizer_folder is not None:
                meter = meter_for(tokenizer_folder, settings, prompt)
            return build(data, meter, Path(scratch), Path(scratch))
        except PrecisError as error:
            return Built(str(error).splitlines())


def problems(
    data: Data,
    prompt: Prompt,
    settings: SummarizerSettings | None = None,
    tokenizer_folder: Path | None = None,
) -> tuple[list[str], dict[str, int]]:
    """The problems and counts of `look`."""
    built = look(data, prompt, settings, tokenizer_folder)
    return built.problems, built.counts


def _reference(folder: Path, built: Built) -> DatasetRef:
    train, evaluation = digest.of_file(folder / TRAIN), digest.of_file(folder / EVALUATION)
    return DatasetRef(
        uri=str(folder),
        digest=digest.of_value([train, evaluation]),
        train_digest=train,
        evaluation_digest=evaluation,
        train_rows=built.counts["train_rows"],
        evaluation_rows=built.counts["evaluation_rows"],
        rejected=built.counts["rejected"],
    )
