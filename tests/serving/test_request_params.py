"""What a request may ask for beside its documents: the judged answers stay as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import tiny

from tasks.register import log_model
from tasks.serving.summarizer import Generator, SummarizerSettings, asked_for

SETTINGS = SummarizerSettings(
    "Sum:\n{document}\nUp: ", 60, "tail", 12, 3, columns=("dialogue",), decoding="auto"
)
TEXTS = ["Ann: hello", "word " * 90]


def test_what_is_not_asked_for_changes_nothing() -> None:
    """No params, nulls, and the values that stand for greedy decoding."""
    assert asked_for(None, SETTINGS) == (SETTINGS, False)
    same = {
        "max_new_tokens": 12,
        "truncated": False,
        "temperature": 0.0,
        "top_p": 1.0,
        "stop": None,
    }
    assert asked_for(same, SETTINGS) == (SETTINGS, False)
    shorter, tells = asked_for({"max_new_tokens": 3, "truncated": True}, SETTINGS)
    assert (shorter, tells) == (replace(SETTINGS, max_new_tokens=3, decoding="generate"), True)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"max_new_tokens": 13}, "max_new_tokens is 13: from 1 to 12, the longest that was judged"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"max_new_tokens": "x"}, "max_new_tokens is 'x'"),
        ({"truncated": 1}, "truncated is 1: true or false"),
        ({"temperature": 0.5}, "temperature is not taken.*leave it out, or send 0.0"),
        ({"max_tokens": 5}, "max_tokens is not taken.*use max_new_tokens"),
        ({"stop": "x", "do_sample": True}, "stop is not taken.*; do_sample is not taken"),
        ({"unheard_of": 1}, "unheard_of is not taken"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_named(params: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        asked_for(params, SETTINGS)


@pytest.mark.usefixtures("one_thread")
def test_a_logged_model_honours_them_and_its_page_shows_it(tmp_path: Path) -> None:
    """Without params the judged answers; a shorter one is their beginning; what was cut is told."""
    package = tiny.packaged(tiny.make_tiny_base(tmp_path / "base"), tmp_path / "package", SETTINGS)
    log_model.lay_out(package, tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    judged = [summary.text for summary in Generator(package, "cpu").summarize(TEXTS)]
    assert model.predict(TEXTS) == judged
    told = model.predict(pd.DataFrame({"dialogue": TEXTS}), {"truncated": True})
    assert told.to_dict("list") == {"summary": judged, "truncated": [False, True]}
    short = model.predict(TEXTS, {"max_new_tokens": 2})
    own = Generator(package, "cpu")
    own.settings = replace(own.settings, max_new_tokens=2)
    assert short == [summary.text for summary in own.summarize(TEXTS)] != judged
    assert model.predict(TEXTS) == judged, "the shorter limit stayed"
    with pytest.raises(ValueError, match="top_k is not taken"):
        model.predict(TEXTS, {"top_k": 5})

    # What MLflow's pages show of it.
    metadata = model.metadata
    assert metadata.get_input_schema().input_names()[1:] == ["dialogue", "document"]
    assert metadata.get_output_schema().input_names() == ["summary"]
    defaults = {param.name: param.default for param in metadata.get_params_schema().params}
    assert (defaults["max_new_tokens"], defaults["temperature"]) == (12, 0.0)
    example = model.input_example
    assert list(example.columns) == ["dialogue"]
    own.settings = SETTINGS
    assert model.predict(example) == [own.summarize([example.dialogue[0]])[0].text]
    files = [file for file in (tmp_path / "model").rglob("*") if file.is_file()]
    assert not any("__pycache__" in file.parts for file in files)
    total = sum(file.stat().st_size for file in files)
    beside = ("MLmodel", "precis_manifest.json")
    own_size = sum((tmp_path / "model" / name).stat().st_size for name in beside)
    assert metadata.model_size_bytes == total - own_size
