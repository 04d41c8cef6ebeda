"""Whether an engine writes the texts again that its version was judged by."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from flows.serve.engines import Engine, EngineBusy, EngineFailed, EngineGone, EngineRefused
from tasks.contracts.errors import RegistryError, ServedModelDiffers
from tasks.contracts.records import Prediction

HALF = 0.5  # of the rows, in 16 bits: there a tie between two tokens may be broken otherwise


async def give_back(engine: Engine, rows: Sequence[Prediction]) -> None:
    """Raise ServedModelDiffers unless the engine writes the stored texts of these rows again."""
    if not rows:
        return
    asked = {"kind": "documents", "items": [row.document for row in rows], "max_tokens": None}
    texts: dict[int, str] = {}
    title = engine.target.title
    try:
        async with contextlib.aclosing(engine.write(asked)) as lines:
            async for line in lines:
                if "text" in line:
                    texts[line["index"]] = line["text"]
    except (EngineBusy, EngineFailed, EngineGone, EngineRefused) as error:
        raise RegistryError(
            f"{title} cannot write the rows that it was judged by: {error}"
        ) from error
    differing = [i for i, row in enumerate(rows) if texts.get(i) != row.text]
    is_exact = engine.info.get("dtype") == "float32"
    if len(differing) > (0 if is_exact else HALF * len(rows)):
        raise ServedModelDiffers(
            f"{title} does not give back what was judged: {len(differing)} of {len(rows)} stored texts "
            "differ; serve it on the kind of machine that it was judged on"
        )
