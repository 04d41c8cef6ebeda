"""Secrets planted everywhere: refused in recipes, and in nothing that is shown, logged or stored."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import mlflow
import pytest
import yaml

from flows import recipes
from tasks.contracts.credentials import holds_credentials, places, redact
from tasks.contracts.errors import RecipeError, RegistryError
from tasks.tracking import connection, mlflow_run

SECRET = "s3cr3tOfTheHouse99"
# Each holds SECRET, in a place where one may stand.
PLANTED = [
    f"http://user:{SECRET}@host:5000",
    f"https://{SECRET}@host/path",
    f"http://{SECRET}:@host",
    f"http://x-access-token:{SECRET}@host",
    f"postgresql+psycopg2://user:{SECRET}@/mlflow?host=/tmp",
    f"postgresql://user:pa/{SECRET}@host/db",
    f"postgresql://user:p@{SECRET}@host/db",
    f"s3://key:{SECRET}@bucket/data.jsonl",
    f"s3://{SECRET}abc@bucket/data.jsonl",
    f"https://host/data.jsonl?password={SECRET}",
    f"https://host/data.jsonl?a=1&token={SECRET}&b=2",
    f"https://host/d?X-Amz-Credential=AK&X-Amz-Signature={SECRET}",
    f"https://host/d?sig={SECRET}",
    f"https://host/d?api_key={SECRET}#part",
    f"https://host/d?access_key_id={SECRET}",
    f"https://host/d;auth={SECRET}",
    f"dask:tcp://user:{SECRET}@host:8786",
    f"https://oauth2:{SECRET}@gitlab.example/model",
    f"hf_{SECRET}AbCdEfGhIjKlMnOp",
    f"org/model?token=hf_{SECRET}",
    f"see https://user:{SECRET}@host and go",
    f"https://host/d?Passphrase={SECRET}",
]
PLAIN = [
    "data/train.jsonl", "s3://bucket/in/day 1.jsonl", "http://host:5000/path@2", "org/model",
    "ray:ray://host:10001", "dask:tcp://host:8786", "abfss://container@account.dfs.core.windows.net/a",
    "http://[::1]:5000", "key=value", "tokenizer/token.json", "https://host/d?page=2&monkey=3",
    "postgresql+asyncpg://postgres@/prefect?host=/tmp/x", "ssh://git@host/repository", "a@b.example",
    "abfss://training-data-prod-2024@account.dfs.core.windows.net/a", "zip://train.csv::https://h/a@b.zip",
    "sftp://svc-precis-training-01@host/a", "github://org:repo@sha/x", "http://h:5000,http://h/x@y",
    "pad_token: <|endoftext|>", "the end token: <|im_end|>", "models/hf_transformersinstruct135",
]  # fmt: skip


@pytest.mark.parametrize("text", PLANTED)
def test_a_secret_is_blanked_and_its_surroundings_stay(text: str) -> None:
    """Alone, in a sentence, and again."""
    assert holds_credentials(text)
    for shown in (redact(text), redact(f"cannot read '{text}': refused"), redact(redact(text))):
        assert SECRET not in shown
        assert "***" in shown
    assert redact(f"cannot read '{text}': refused").endswith("': refused")


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_secret_stays(text: str) -> None:
    """Addresses, ports, containers, user names without a password."""
    assert redact(text) == text
    assert not holds_credentials(text)


@pytest.mark.parametrize(
    "text",
    [
        f"password={SECRET}", f"MLFLOW_TRACKING_PASSWORD: {SECRET}", f"aws_secret_access_key = {SECRET}",
        f"Authorization: Bearer {SECRET}", f"HF_TOKEN={SECRET}", f"X-Api-Key: {SECRET}",
        f"{{'password': '{SECRET}'}}", f'{{"password": "{SECRET}"}}', f"api_key='{SECRET}'",
        f"aws_session_token: '{SECRET}'",
    ],
)  # fmt: skip
def test_settings_by_name_are_blanked(text: str) -> None:
    """As libraries print them in their errors."""
    assert SECRET not in redact(text)


def test_places_are_named() -> None:
    """Through groups and lists."""
    values = {"data": {"train": PLANTED[0], "inputs": ["a", PLANTED[9]]}, "name": "m", "n": 3}
    assert places(values) == ["data.train", "data.inputs[1]"]


@pytest.mark.parametrize(
    "setting",
    [
        "data.train",
        "data.evaluation",
        "base.model",
        "training.checkpoint_store",
        "evaluation.fresh",
    ],
)
@pytest.mark.parametrize("planted", [PLANTED[0], PLANTED[7], PLANTED[9], PLANTED[18]])
def test_a_recipe_with_a_secret_is_refused_without_repeating_it(
    tmp_path: Path, setting: str, planted: str
) -> None:
    """By file or by --set; it is told where secrets belong."""
    path = tmp_path / "recipe.yaml"
    values = {
        "name": "m",
        "data": {"train": "a.jsonl", "evaluation": "b.jsonl"},
        "base": {"model": "o/m"},
    }
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(RecipeError) as caught:
        recipes.load(path, [f"{setting}={planted}"])
    message = str(caught.value)
    assert SECRET not in message
    assert setting in message
    for wrong in (f"training.seed={planted}", f"data.trian={planted}", planted):
        with pytest.raises(RecipeError) as caught:
            recipes.load(path, [wrong])
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("planted", PLANTED)
def test_errors_hold_no_secret(planted: str) -> None:
    """Whatever the message was made of."""
    assert SECRET not in str(RegistryError(f"{planted} cannot be read"))
    assert SECRET not in repr(RecipeError.of([planted, "x"]))
    assert SECRET not in connection.shown(planted)


def test_a_failing_run_stores_none(home_with_store: Path) -> None:
    """Of a library's error too: the whole database is searched."""
    try:
        for number, planted in enumerate(PLANTED):
            with (
                pytest.raises(OSError, match="cannot"),
                mlflow_run.run_for("m", f"flow run {number}", {}),
            ):
                raise OSError(f"cannot read {planted}")
    finally:
        mlflow.set_tracking_uri(None)
    with sqlite3.connect(home_with_store / "mlruns/mlflow.db") as database:
        dump = "\n".join(database.iterdump())
    database.close()
    assert "cannot read" in dump
    assert SECRET not in dump


@pytest.mark.parametrize("uri", [PLANTED[0], PLANTED[4], PLANTED[9]])
def test_a_tracking_address_with_a_secret_is_not_shown(
    home: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    """Not by the error of a server that does not answer, either."""
    uri = uri.replace("host:5000", "127.0.0.1:9").replace("host/", "127.0.0.1:9/")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)  # ten tries take 101 s
    try:
        with pytest.raises(RegistryError) as caught:
            connection.connect()
        assert SECRET not in str(caught.value)
    finally:
        mlflow.set_tracking_uri(None)
