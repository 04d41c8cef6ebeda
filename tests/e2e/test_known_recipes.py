"""The five recipes that known projects are known for, end to end: their own settings, a tiny base of
the same architecture in place of theirs, and real rows of the same kind.

Over 250 lines: its tests share their fixtures.
"""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from stack import PRECIS, ROOT, Stack
from warm import warm_precis

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
SHARED = ROOT.parent / "shared"
RECIPES = ROOT / "deployments/recipes"
# What makes a run small; all else is the recipe's.
LITTLE: dict[str, Any] = {
    "base.revision": None,
    "data.revision": None,
    "data.evaluation": None,
    "data.evaluation_share": 0.25,
    "data.evaluation_rows": 24,
    "data.train_rows": 60,
    "training.max_steps": 8,
    "training.learning_rate": 1e-3,
    "training.gradient_accumulation_steps": 1,
    "evaluation.max_new_tokens": 16,
    "evaluation.batch_size": 24,
    "merge.drift_rows": 2,
    "merge.drift_tokens": 50,
    "gate.feedback": "open",  # numbers are looked at
}


@pytest.fixture(scope="module")
def llama() -> Path:
    """A real Llama of 7 M parameters."""
    folder = SHARED / "models/dialog-7m"
    if not folder.is_dir():
        pytest.skip("needs ../shared/models/dialog-7m")
    return folder


@pytest.fixture(scope="module")
def phi(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Phi with the small Llama's tokenizer."""
    import torch
    from transformers import AutoTokenizer, PhiConfig, PhiForCausalLM

    folder = tmp_path_factory.mktemp("phi")
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = PhiConfig(
            vocab_size=8192,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            partial_rotary_factor=0.5,
            max_position_embeddings=2048,
            initializer_range=0.1,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        PhiForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def ran(recipe: str, base: Path, folder: Path, **changes: Any) -> tuple[dict[str, Any], Stack]:
    """`precis run` of a recipe in a folder of its own; the decision."""
    stack = Stack(folder)
    values = LITTLE | {"base.model": base} | {k.replace("__", "."): v for k, v in changes.items()}
    sets = [w for key, value in values.items() for w in ("--set", f"{key}={as_yaml(value)}")]
    words = ["run", f"deployments/recipes/{recipe}.yaml", "--json", *sets]
    done = warm_precis()(words, folder, stack.environment())
    assert done.returncode == 0, done.stderr[-4000:]
    decision: dict[str, Any] = json.loads(done.stdout)
    for found in decision["metrics"].values():
        assert found["base"] is not None, "before tuning"
        assert found["challenger"] is not None, "after"
    return decision, stack


def as_yaml(value: Any) -> str:
    """A value as YAML on one line."""
    text = str(value) if isinstance(value, Path) else value
    return yaml.safe_dump(text, default_flow_style=True).removesuffix("...\n").strip()


def shared_data(name: str) -> Path:
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"needs ../shared/data/{name}")
    return path


def report_of(stack: Stack, decision: dict[str, Any]) -> str:
    """The report's page."""
    run = decision["report"].removeprefix("runs:/").split("/")[0]
    (page,) = (stack.folder / "mlruns/artifacts").glob(f"*/{run}/artifacts/report.html")
    return page.read_text()


def test_whole_bills_fit(llama: Path, tmp_path: Path) -> None:
    """llama2-billsum: bills with CRLF line ends, longer than the base's context, and none is cut."""
    lines = shared_data("billsum/us_train_100.jsonl").read_text().splitlines()
    bills = [json.loads(line) for line in lines]
    for bill in bills:
        bill["text"] = bill["text"].replace("\n", "\r\n")
    rows = tmp_path / "bills.jsonl"
    rows.write_text("".join(json.dumps(bill) + "\n" for bill in bills))
    decision, stack = ran(
        "llama2-billsum",
        llama,
        tmp_path / "run",
        data__train=rows,
        data__train_rows=12,
        data__evaluation_rows=8,
        training__max_steps=2,
        evaluation__batch_size=2,
        training__optim="adamw_torch",  # the recipe's paged one wants a GPU
    )
    packages = list((stack.folder / "mlruns/work/merge").glob("*/package/config.json"))
    config = json.loads(packages[0].read_text())
    theta = 10_000.0 * (6144 / 2048) ** (64 / 62)
    assert config["rope_parameters"]["rope_theta"] == pytest.approx(theta)
    assert config["max_position_embeddings"] == 6144
    predictions = next(
        (stack.folder / "mlruns/artifacts").glob("*/*/artifacts/gate/challenger.json")
    )
    table = json.loads(predictions.read_text())
    lengths = [row[table["columns"].index("prompt_tokens")] for row in table["data"]]
    assert max(lengths) > 2048, "longer than the base's own context"
    assert decision["evaluation_digest"]


@pytest.mark.long
def test_own_files_of_three_formats(llama: Path, tmp_path: Path) -> None:
    """llama2-custom: a folder of JSONL, CSV and Parquet, no column named; the guess is shown."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = shared_data("dialogsum/dev.jsonl").read_text().splitlines()[:120]
    rows = [{k: json.loads(line)[k] for k in ("fname", "dialogue", "summary")} for line in lines]
    folder = tmp_path / "run/data"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:40]))
    with (folder / "b.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows[40:80])
    pq.write_table(pa.Table.from_pylist(rows[80:]), folder / "c.parquet")
    decision, stack = ran(
        "llama2-custom", llama, tmp_path / "run", data__train_rows=None, data__train="data"
    )
    assert "dialogue" in report_of(stack, decision)


def test_chat_of_several_turns_is_judged_by_loss_and_then_answers(
    llama: Path, tmp_path: Path
) -> None:
    """llama2-chat-guanaco: the verdict follows the held-out loss; `precis ask` gets an answer.

    The small base has read these very conversations, so that it may get no better at them.
    """
    decision, stack = ran(
        "llama2-chat-guanaco",
        llama,
        tmp_path / "run",
        data__train=shared_data("guanaco/train.jsonl"),
        data__train_rows=80,
        training__max_steps=10,
        training__max_length=1024,
        gate__length_ratio=[0.0, 2.0],  # answers of 16 tokens are short of any reference
        gate__guardrail_margin=1.0,
        gate__max_empty_share=1.0,
        gate__max_invented_rise=1.0,
        gate__max_lost_share=1.0,
        gate__max_repeating_rise=1.0,
        gate__max_copied_rise=1.0,
        gate__max_same_share=1.0,
    )
    loss = decision["metrics"]["loss"]
    fall = loss["base"] - loss["challenger"]
    assert loss["gain"] == pytest.approx(fall)
    assert loss["lead3"] is None
    assert decision["verdict"] in ({"PROMOTE", "INCONCLUSIVE"} if fall > 0 else {"REJECT"})
    package = next((stack.folder / "mlruns/work/merge").glob("*/package"))
    asked = ["ask", f"./{package.relative_to(stack.folder)}", "What is a monopsony?"]
    done = warm_precis()(asked, stack.folder, stack.environment())
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


@pytest.mark.long
def test_medical_questions_with_inst_prompts(llama: Path, tmp_path: Path) -> None:
    """llama2-medical-qa: questions that repeat, answers with runs of spaces, ids that are numbers as
    strings; repeated questions are one document to the gate."""
    decision, _ = ran(
        "llama2-medical-qa",
        llama,
        tmp_path / "run",
        data__train=shared_data("medquad/medquad_3k.jsonl"),
        data__train_rows=80,
        data__fields={"document": "question", "summary": "answer", "id": "qid"},
    )
    assert set(decision["metrics"]) >= {"rougeL"}


@pytest.mark.long
def test_dialogues_before_and_after_with_three_references(phi: Path, tmp_path: Path) -> None:
    """phi2-dialogsum: three rows a dialogue, as on the hub's test split, are one document each."""
    dev = shared_data("dialogsum/dev.jsonl").read_text().splitlines()
    train = tmp_path / "train.jsonl"
    renamed = [{**(row := json.loads(line)), "id": row["fname"]} for line in dev]
    train.write_text("".join(json.dumps(row) + "\n" for row in renamed[:80]))
    three = [
        {**row, "id": f"{row['id']}_{n}", "summary": text}
        for row in renamed[100:124]
        for n, text in enumerate((row["summary"], row["summary"].split(".")[0], row["topic"]), 1)
    ]
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps(row) + "\n" for row in three))
    decision, stack = ran(
        "phi2-dialogsum",
        phi,
        tmp_path / "run",
        data__train=train,
        data__evaluation=test,
        data__evaluation_rows=None,
        merge__min_top1_agreement=0.0,  # random weights: near ties, whose order rounding decides
    )
    path = next((stack.folder / "mlruns/artifacts").glob("*/*/artifacts/gate/decision.json"))
    judged = json.loads(path.read_text())
    assert (judged["rows"], judged["clusters"]) == (72, 24)
    assert decision["metrics"]["rougeL"]["base"] is not None


@pytest.mark.parametrize(
    "name",
    [
        "llama2-billsum",
        "llama2-custom",
        "llama2-chat-guanaco",
        "llama2-medical-qa",
        "phi2-dialogsum",
    ],
)
def test_check_says_offline_what_is_missing(name: str, tmp_path: Path) -> None:
    """`precis check` on the true recipe names the base that is not here, and nothing that is false."""
    stack = Stack(tmp_path)
    done = subprocess.run(
        [PRECIS, "check", f"deployments/recipes/{name}.yaml"],
        cwd=tmp_path,
        env=stack.environment() | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        check=False,
    )
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert recipe["base"]["model"] in done.stderr + done.stdout
    if not recipe["data"]["train"].startswith("hub:"):
        assert "data.train" in done.stderr + done.stdout
    elif "revision" not in recipe["data"]:
        assert "data.revision" in done.stderr + done.stdout
