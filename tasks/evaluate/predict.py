"""Summaries of the evaluation rows, written by a package's own code, scored and kept as a table.

Runs in a child process (tasks.processes.step_process): its memory, on the GPU too, goes back when it ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.contracts.errors import EvaluationError
from tasks.contracts.metrics import NO_LOSS
from tasks.contracts.records import Output, Row, read_rows
from tasks.evaluate import data_parallel
from tasks.evaluate.scores import lead3_predictions, measures, score_texts, scores_of
from tasks.models.package_code import load_code
from tasks.processes.step_process import report
from tasks.tracking.predictions_table import write_table

__all__ = ["lead3_predictions", "load_code", "predict", "score_texts", "scores_of"]

OUT_OF_MEMORY = "; lower evaluation.batch_size, or set evaluation.decoding to generate"
LOSS_BATCHES = 8  # between two lines of progress


def predict(
    package: str,
    rows: str,
    table: str,
    device: str | None = None,
    loss: bool = False,
    devices: int = 1,
) -> dict[str, Any]:
    """Summarize the rows of a JSONL file with a package and write the predictions table.

    `loss`: also the held-out loss of each row's references, a forward pass more. `devices`: by so many
    processes, each with a GPU of its own where there are GPUs. Returns what was measured: `rows`,
    `means`, `finished_share`, `empty_share`, `length_ratio`, `seconds` (of generating),
    `output_tokens`, `loss_cut_rows` (documents cut further than in serving, so that their references
    fit whole), `device`, `dtype` and `decoding`. Raises EvaluationError when there is nothing to
    evaluate or any batch fails: nothing is ever scored in its place.
    """
    if devices == 1:
        parts = [write(package, rows, device, loss)]
    else:
        call = {"package": package, "rows": rows, "device": device, "loss": loss}
        count = len(_rows(Path(rows)))
        parts = data_parallel.write(call, devices, count, Path(table).parent / "parts")
    return put_together(parts, Path(rows), Path(table), loss)


def put_together(
    parts: list[dict[str, Any]], rows: Path, table: Path, loss: bool
) -> dict[str, Any]:
    """Score what `write` gave for all parts, and keep it as the predictions table.

    Returns and raises as `predict`, which says what is measured.
    """
    wanted = _rows(rows)
    outputs = data_parallel.in_order("outputs", parts, len(wanted))
    losses = data_parallel.in_order("losses", parts, len(wanted)) if loss else None
    values = [value for value, _ in losses] if losses is not None else None
    predictions = score_texts(wanted, [Output(**output) for output in outputs], values)
    table.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, predictions)
    return vars(measures(predictions)) | {
        "seconds": max(part["seconds"] for part in parts),
        "output_tokens": sum(output["output_tokens"] for output in outputs),
        "loss_cut_rows": sum(cut > 0 for _, cut in losses or ()),
        **{name: parts[0][name] for name in ("device", "dtype", "decoding")},
    }


def write(
    package: str,
    rows: str,
    device: str | None = None,
    loss: bool = False,
    part: int = 0,
    parts: int = 1,
    together: bool = False,
) -> dict[str, Any]:
    """What a package writes for every `parts`th batch of the rows, from batch `part` on.

    `outputs` and, where they are wanted, `losses` ([nats a token, tokens cut]) by the row's index.
    Batches are those of one process, so that what is written does not depend on how many there are.
    `together`: all parts are written on this machine at once, so that each takes a GPU by its number.
    """
    wanted = _rows(Path(rows))
    if together and device is None:
        device = data_parallel.device(part, parts)
    generator = _generator(Path(package), device)
    started = time.monotonic()
    outputs = _generate(generator, [row.document for row in wanted], part, parts)
    seconds = time.monotonic() - started
    losses = _losses(generator, wanted, part, parts) if loss else {}
    return {
        "outputs": {str(i): vars(output) for i, output in outputs.items()},
        "losses": {str(i): [found.value, found.cut_tokens] for i, found in losses.items()},
        "seconds": seconds,
        "device": str(generator.device).partition(":")[0],
        "dtype": str(generator.model.dtype).removeprefix("torch."),
        "decoding": _decoding(generator),
    }


def _decoding(generator: Any) -> str:
    """How it wrote: continuous, or generate, with the reason where the other was wanted."""
    if getattr(generator.settings, "decoding", "generate") == "generate":  # or an older package
        return "generate"
    if generator.decoder() is not None:
        return "continuous"
    return f"generate: {generator.refusal}" if generator.refusal else "generate"


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


def _generate(generator: Any, documents: list[str], part: int, parts: int) -> dict[int, Output]:
    with _explained("a document could not be made a prompt"):
        batches = generator.batches(documents)
    mine = {number: batch for number, batch in enumerate(batches) if number % parts == part}
    total = sum(map(len, mine.values()))
    found: dict[int, Output] = {}
    tokens, started = 0, time.monotonic()
    written = _written(generator, documents, mine)
    for number, batch in mine.items():
        with _explained(f"batch {number + 1} of {len(batches)} failed"):
            outputs = [Output(**vars(summary)) for summary in next(written)]
            found |= dict(zip(batch, outputs, strict=True))
        tokens += sum(output.output_tokens for output in outputs)
        rate = tokens / max(time.monotonic() - started, 1e-9)
        report(done=len(found), total=total, tokens_per_second=rate)
    return found


def _written(
    generator: Any, documents: list[str], batches: dict[int, list[int]]
) -> Iterator[list[Any]]:
    """The package's own summaries of each batch in turn; older packages know one batch at a time."""
    if hasattr(generator, "summarize_batches"):
        yield from generator.summarize_batches(documents, batches)
        return
    for number, batch in batches.items():
        yield generator.summarize_batch([documents[i] for i in batch], number)


def _losses(generator: Any, rows: Sequence[Row], part: int, parts: int) -> dict[int, Any]:
    """The package's own `Loss` by row. Raises EvaluationError when its code has another, or none."""
    from tasks.serving.summarizer import Generator

    if getattr(generator, "loss_definition", None) != Generator.loss_definition:
        raise EvaluationError(NO_LOSS.format("this model's package"))
    found: dict[int, Any] = {}
    step = LOSS_BATCHES * generator.settings.batch_size
    starts = range(0, len(rows), step)[part::parts]
    total = sum(len(rows[start : start + step]) for start in starts)
    for start in starts:
        some = rows[start : start + step]
        with _explained(f"the loss of rows {start + 1} to {start + len(some)} failed"):
            losses = generator.losses([r.document for r in some], [r.references for r in some])
            found |= dict(zip(range(start, start + len(some)), losses, strict=True))
        report(done=len(found), total=total, what="losses")
    return found


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Any failure inside as an EvaluationError that says what failed and the mend."""
    try:
        yield
    except Exception as error:
        mend = OUT_OF_MEMORY if _out_of_memory(error) else ""
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
