"""The seal of an evaluation: one digest of all that a score depends on besides the model.

Scores under different seals are never compared.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.contracts import code_digest, digest, words
from tasks.contracts.errors import EvaluationError, SealBroken
from tasks.contracts.records import ROUGE_NAMES, Scores
from tasks.evaluate import sentences
from tasks.evaluate.scores import DEFAULT_SCORING, Scoring

if TYPE_CHECKING:  # the import costs a second (mlflow), and only a dataclass's fields are read
    from tasks.serving.summarizer import SummarizerSettings

METRIC_FOLDER = Path(__file__).parent / "rouge"
# What scoring reads besides the metric's folder: what a word is, and where a sentence ends.
METRIC_MODULES = (Path(words.__file__), Path(sentences.__file__))
METRIC_SETTINGS = {"types": ROUGE_NAMES, "stemmer": True}
# In float32 a summary does not depend on its batch (tried: 32 of 32 equal at batch 1 and 8). On a GPU it may,
# by rounding: the predictions table holds the batch plan, and a model may be judged with the batch size that
# fits its GPU. kv_cache decides where numbers are stored, not which. columns are names that a
# request may use.
UNSEALED = {"batch_size", "kv_cache", "columns"}


def evaluation_digest(
    rows_digest: str,
    settings: SummarizerSettings,
    metric: Path = METRIC_FOLDER,
    *,
    scoring: Scoring = DEFAULT_SCORING,
    loss: bool = False,
) -> str:
    """The seal of evaluation rows, prompt, truncation, decoding and metric (SHA-256, hex).

    `scoring`: what counts as a word, and how several references count. `loss`: whether the
    held-out loss is computed too; its definition is then part of the seal.
    """
    sealed = {
        "rows": rows_digest,
        "settings": _sealed(settings),
        "metric": METRIC_SETTINGS | asdict(scoring),
        "metric_code": metric_digest(metric),
        "words_code": [code_digest.of_file(path) for path in METRIC_MODULES],
    }
    return digest.of_value(sealed | ({"loss": _loss_definition()} if loss else {}))


def _loss_definition() -> str:
    from tasks.serving.summarizer import Generator

    return Generator.loss_definition


def _sealed(settings: SummarizerSettings) -> dict[str, Any]:
    # A setting that was added after the first seals counts only when it is not its default, so that scores
    # from before it stay comparable.
    unchanged = {f.name for f in fields(settings) if getattr(settings, f.name) == f.default}
    left_out = UNSEALED | (unchanged - {"stop"})  # the first seals included it, at its default too
    return {name: value for name, value in asdict(settings).items() if name not in left_out}


def metric_digest(folder: Path) -> str:
    """SHA-256 (hex) over the metric's code; it calls no library that could change a score."""
    return code_digest.of_folder(folder)


def require_same(*scores: Scores) -> str:
    """The seal that all these scores share.

    Raises SealBroken, naming two that differ; EvaluationError when there are no scores.
    """
    if not scores:
        raise EvaluationError("no scores to compare")
    first = scores[0]
    for other in scores[1:]:
        if other.evaluation_digest != first.evaluation_digest:
            raise SealBroken(
                f"scores of model {first.model_digest} were taken under evaluation digest "
                f"{first.evaluation_digest}, those of {other.model_digest} under "
                f"{other.evaluation_digest}: rows, prompt, decoding or metric differ; score both on "
                "the same evaluation set"
            )
    return first.evaluation_digest
