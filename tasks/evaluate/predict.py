"""Summaries of the evaluation rows, written by a package's own code, scored and kept as a table.

Runs in a child process (tasks.child): its memory, on the GPU too, goes back when it ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.child import report
from tasks.errors import EvaluationError
from tasks.evaluate.scores import lead3_predictions, measures, score_texts, scores_of
from tasks.metrics import NO_LOSS
from tasks.package import load_code
from tasks.records import Output, Row, read_rows
from tasks.table import write_table

__all__ = ["lead3_predictions", "load_code", "predict", "score_texts", "scores_of"]

LOSS_BATCHES = 8  # between two lines of progress


def predict(
    package: str, rows: str, table: str, device: str | None = None, loss: bool = False
) -> dict[str, Any]:
    """Summarize the rows of a JSONL file with a package and write the predictions table.

    `loss`: also the held-out loss of each row's references, a forward pass more. Returns what was
    measured: `rows`, `means`, `finished_share`, `empty_share`, `length_ratio`, `seconds` (of
    generating), `output_tokens`, `loss_cut_rows` (documents cut further than in serving, so that
    their references fit whole), `device` and `dtype`. Raises EvaluationError when there is nothing to
    evaluate or any batch fails: nothing is ever scored in its place.
    """
    wanted = _rows(Path(rows))
    generator = _generator(Path(package), device)
    started = time.monotonic()
    outputs = _generate(generator, [row.document for row in wanted])
    seconds = time.monotonic() - started
    losses = _losses(generator, wanted) if loss else None
    values = [found.value for found in losses] if losses is not None else None
    predictions = score_texts(wanted, outputs, values)
    Path(table).parent.mkdir(parents=True, exist_ok=True)
    write_table(Path(table), predictions)
    return vars(measures(predictions)) | {
        "seconds": seconds,
        "output_tokens": sum(output.output_tokens for output in outputs),
        "loss_cut_rows": sum(found.cut_tokens > 0 for found in losses or ()),
        "device": str(generator.device),
        "dtype": str(generator.model.dtype).removeprefix("torch."),
    }


def _rows(path: Path) -> list[Row]:
    try:
        rows = read_rows(path)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: evaluation rows cannot be read ({error})") from error
    if not rows:
        raise EvaluationError(f"{path} holds no rows; a model cannot be judged on an empty set")
    return rows


def _generator(package: Path, device: str | None) -> Any:
    with _explained(f"{package} could not be loaded"):
        generator = load_code(package).Generator(package, device)
        # The most likely token of NaNs is still a token: such a model would be scored.
        broken = [name for name, p in generator.model.named_parameters() if not _finite(p)]
    if broken:
        raise EvaluationError(f"{package} holds weights that are not finite: {broken[0]}; retrain")
    return generator


def _finite(parameter: Any) -> bool:
    return bool(parameter.isfinite().all())


def _generate(generator: Any, documents: list[str]) -> list[Output]:
    with _explained("a document could not be made a prompt"):
        batches = generator.batches(documents)
    found: dict[int, Output] = {}
    tokens, started = 0, time.monotonic()
    for number, batch in enumerate(batches):
        with _explained(f"batch {number + 1} of {len(batches)} failed"):
            summaries = generator.summarize_batch([documents[i] for i in batch], number)
            outputs = [Output(**vars(summary)) for summary in summaries]
            found |= dict(zip(batch, outputs, strict=True))
        tokens += sum(output.output_tokens for output in outputs)
        rate = tokens / max(time.monotonic() - started, 1e-9)
        report(done=len(found), total=len(documents), tokens_per_second=rate)
    return [found[i] for i in range(len(documents))]


def _losses(generator: Any, rows: Sequence[Row]) -> list[Any]:
    """The package's own `Loss` of each row. Raises EvaluationError when its code has another, or none."""
    from tasks.summarizer import Generator

    if getattr(generator, "loss_definition", None) != Generator.loss_definition:
        raise EvaluationError(NO_LOSS.format("this model's package"))
    found: list[Any] = []
    step = LOSS_BATCHES * generator.settings.batch_size
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        with _explained(f"the loss of rows {start + 1} to {start + len(part)} failed"):
            losses = generator.losses([r.document for r in part], [r.references for r in part])
            found += [loss for _, loss in zip(part, losses, strict=True)]
        report(done=len(found), total=len(rows), what="losses")
    return found


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Any failure inside as an EvaluationError that says what failed and the mend."""
    try:
        yield
    except Exception as error:
        mend = "; lower evaluation.batch_size" if _out_of_memory(error) else ""
        raise EvaluationError(
            f"evaluation stopped, nothing was scored: {what} ({type(error).__name__}: {error}){mend}"
        ) from error


def _out_of_memory(error: Exception) -> bool:
    # torch's CPU allocator raises a plain RuntimeError.
    return (
        isinstance(error, MemoryError)
        or "out of memory" in str(error)
        or "can't allocate memory" in str(error)
    )
