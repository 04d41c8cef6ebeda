"""What makes a look at the deciding rows another one: by which rules it was judged, and from what.

A verdict is one chance to be lucky. The same challenger asked again is no further chance only where nothing
has changed that the verdict is made of: the gate's settings, how ROUGE counts, and of the deciding rows the
documents, references, outputs and their scores. A row dropped, a reference edited, or a blank that makes a
model write something else, is another chance. Another order, other ids and blanks by themselves are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks.contracts import digest
from tasks.contracts.comparable_text import comparable_words
from tasks.contracts.documents import plain_text
from tasks.contracts.metrics import largest_drop
from tasks.contracts.recipe import Evaluation, Gate
from tasks.contracts.records import ROUGE_NAMES, Prediction, Scores
from tasks.contracts.slice_labels import Labels
from tasks.gate.clusters import clusters

# Settings of the gate that change no verdict. Approval is asked after it; of folders counts the content, and
# only where a drop may veto.
NEVER = {"metric", "approval", "approval_timeout_days", "nli_model", "bertscore_model"}
SCORING = {"words", "references"}  # settings of evaluation that change every score
SCORE_DIGITS = 6


def judged_by(
    settings: Gate, scores: Scores | None = None, evaluation: Evaluation | None = None
) -> str:
    """The metric, and a digest of the settings that are not the defaults and may change a verdict.

    The same challenger asked again with another min_delta or alpha tells more of the deciding rows. `scores`:
    the challenger's.
    """
    shown = set()
    if not _slices_decide(settings):
        shown |= {"slices", "slice_loss"}
    if settings.max_bertscore_drop is None:
        shown.add("bertscore_layer")
    changed = settings.model_dump(mode="json", exclude_defaults=True, exclude=NEVER | shown)
    used = scores.metric_models.items() if scores else ()
    changed |= {name: one.digest for name, one in used if largest_drop(settings, name) is not None}
    if evaluation:
        scoring = evaluation.model_dump(mode="json", exclude_defaults=True, include=SCORING)
        changed |= {f"evaluation.{name}": value for name, value in scoring.items()}
    return f"{settings.metric}-{digest.of_value(changed)[:8]}" if changed else settings.metric


def decided_from(
    challenger: Sequence[Prediction],
    opponent: Sequence[Prediction],
    settings: Gate,
    labels: Labels,
) -> str:
    """A digest of all that is compared on the deciding rows, whatever their order, ids and blanks.

    Scores count too: evaluation.words: auto goes by the references of the open rows as well. The loss does
    not: its last digits depend on which rows were computed together.
    """
    others = {row.id: row for row in opponent}
    used = labels if _slices_decide(settings) else {}
    groups: dict[int, list[str]] = {}
    for cluster, row in zip(clusters(challenger), challenger, strict=True):
        document = plain_text(row.document)
        compared: list[Any] = [
            " ".join(comparable_words(document)) or document,
            [_spaced(reference) for reference in row.references],
            [_written(one) for one in (row, others.get(row.id)) if one],
            {by: sorted(rows.get(row.id, ())) for by, rows in used.items()},
        ]
        groups.setdefault(cluster, []).append(digest.of_value(compared))
    return digest.of_value(sorted(sorted(rows) for rows in groups.values()))


def _slices_decide(settings: Gate) -> bool:
    return bool(settings.slices) and settings.slice_loss == "veto"


def _written(row: Prediction) -> tuple[str, list[float]]:
    scores = [row.scores[name] for name in ROUGE_NAMES if name in row.scores]
    return _spaced(row.text), [round(score, SCORE_DIGITS) for score in scores]


def _spaced(text: str) -> str:
    return " ".join(text.split())
