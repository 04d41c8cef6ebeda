"""Manifests for clusters, against KServe's and Ray Serve's own schemas: every field, and its type."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import cluster_environments
import pytest
import yaml

SERVING = Path(__file__).parents[2] / "deployments/serving"
KSERVE, RAY = SERVING / "kserve.yaml", SERVING / "ray_serve.yaml"

# KServe's Python models are made from its CRD: names and types of every field. They ignore fields that they
# do not know, so each is looked up here.
KSERVE_CHECK = """
import json, re, sys
import kserve.models, kubernetes.client, yaml

SIMPLE = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}

def faults(kind, value, where):
    if found := re.fullmatch(r"[lL]ist\\[(.*)\\]", kind):
        if not isinstance(value, list):
            return [f"{where} is no list"]
        return [f for i, v in enumerate(value) for f in faults(found[1], v, f"{where}[{i}]")]
    if found := re.fullmatch(r"[dD]ict[([]str, (.*)[])]", kind):
        return [f for k, v in value.items() for f in faults(found[1], v, f"{where}.{k}")]
    if kind in SIMPLE:
        return [] if isinstance(value, SIMPLE[kind]) else [f"{where} is {value!r}, no {kind}"]
    of = getattr(kserve.models, kind, None) or getattr(kubernetes.client, kind)
    names = {alias: name for name, alias in of.attribute_map.items()}
    unknown = [f"{where}.{key} is no field of {kind}" for key in value if key not in names]
    return unknown + [
        fault for key, v in value.items() if key in names
        for fault in faults(of.openapi_types[names[key]], v, f"{where}.{key}")
    ]

print(json.dumps(faults("V1beta1InferenceService", yaml.safe_load(sys.stdin), "")))
"""
RAY_CHECK = """
import json, sys
import yaml
from ray.serve.schema import ServeDeploySchema
from ray.llm._internal.serve.core.configs.llm_config import LLMConfig

found = []
try:
    config = ServeDeploySchema.model_validate(yaml.safe_load(sys.stdin))
    for application in config.applications:
        for one in application.args["llm_configs"]:
            LLMConfig.model_validate(one)
except Exception as error:
    found.append(str(error))
print(json.dumps(found))
"""


def faults(environment: str, check: str, manifest: Any) -> list[str]:
    """What the project's own schema finds."""
    done = subprocess.run(
        [cluster_environments.python(environment), "-c", check],
        input=yaml.safe_dump(manifest), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return list(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_kserve_knows_every_field() -> None:
    """And would name one that it does not know, or of another type."""
    manifest = yaml.safe_load(KSERVE.read_text())
    assert faults("kserve", KSERVE_CHECK, manifest) == []
    manifest["spec"]["predictor"]["minReplicas"] = "one"
    model = manifest["spec"]["predictor"]["model"]
    model["storageURI"] = model.pop("storageUri")
    named = "; ".join(faults("kserve", KSERVE_CHECK, manifest))
    assert ".spec.predictor.minReplicas is 'one', no int" in named
    assert ".spec.predictor.model.storageURI is no field of V1beta1ModelSpec" in named


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ray_serve_knows_every_field() -> None:
    """And would name one that it does not know, or of another type."""
    manifest = yaml.safe_load(RAY.read_text())
    assert faults("ray", RAY_CHECK, manifest) == []
    (config,) = manifest["applications"][0]["args"]["llm_configs"]
    config["engine_kwarg"] = config.pop("engine_kwargs")
    assert any("engine_kwarg" in fault for fault in faults("ray", RAY_CHECK, manifest))


def test_both_serve_as_judged() -> None:
    """In float32, by vLLM, with the attention that a GPU would otherwise compute in TF32."""
    predictor = yaml.safe_load(KSERVE.read_text())["spec"]["predictor"]["model"]
    assert {"--backend=vllm", "--dtype=float32"} <= set(predictor["args"])
    ieee = {"name": "TRITON_F32_DEFAULT", "value": "ieee"}
    assert ieee in predictor["env"]
    (config,) = yaml.safe_load(RAY.read_text())["applications"][0]["args"]["llm_configs"]
    assert config["engine_kwargs"]["dtype"] == "float32"
    assert config["runtime_env"]["env_vars"]["TRITON_F32_DEFAULT"] == "ieee"
    length = f"--max_model_len={config['engine_kwargs']['max_model_len']}"
    assert length in predictor["args"]
