"""What can be known of the server files without a container engine: every name in them exists."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deployments"
POOLS = sorted((FOLDER / "pools").glob("*.json"))
PAGE, DOCKERFILE, COMPOSE = ROOT / "docs/servers.md", FOLDER / "Dockerfile", FOLDER / "compose.yaml"
TEXTS = [PAGE, DOCKERFILE, COMPOSE, *POOLS]
# Read outside Prefect's settings: by `prefect flow-run execute`, and by prefect-kubernetes 0.8.0.
ELSEWHERE = {
    "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR",
    "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_NAME",
    "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_KEY",
}
COMMANDS = [
    "mlflow server",
    "prefect server start",
    "prefect worker start",
    "prefect work-pool create",
    "prefect work-pool get-default-base-job-template",
    "prefect work-pool update",
    "prefect deploy",
    "prefect gcl update",
]
HELPS = """
import contextlib, sys
import mlflow.cli, prefect.cli
for command in sys.argv[1:]:
    program, *words = sys.argv[:] = [*command.split(), "--help"]
    print(chr(0), flush=True)
    with contextlib.suppress(SystemExit):
        mlflow.cli.cli(words) if program == "mlflow" else prefect.cli.app()
"""


def named(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_every_setting_exists(path: Path) -> None:
    """A misspelt PREFECT_ or MLFLOW_ variable would be ignored in silence."""
    import mlflow.cli
    import mlflow.environment_variables
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_valid_setting_names

    known = _get_valid_setting_names(Settings) | set(dir(mlflow.environment_variables)) | ELSEWHERE
    known |= {
        str(option.envvar) for option in mlflow.cli.server.params if hasattr(option, "envvar")
    }
    found = set(re.findall(r"\b(?:PREFECT|MLFLOW)_[A-Z_]+\b", path.read_text()))
    assert found
    assert found - known == set()


def test_modules_named_as_settings_exist() -> None:
    """The lease storage is a module path, read only when the first lease is taken."""
    from importlib.util import find_spec

    services = yaml.safe_load(COMPOSE.read_text())["services"]
    name = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
    assert find_spec(services["prefect"]["environment"][name])
    (name_on_page,) = set(re.findall(rf"{name}=(\S+)", PAGE.read_text()))
    assert name_on_page == services["prefect"]["environment"][name]


@pytest.mark.parametrize("path", [PAGE, DOCKERFILE, COMPOSE], ids=named)
def test_every_option_exists(path: Path) -> None:
    """Each `prefect` and `mlflow` command line names options of the pinned versions."""
    lines = commands(path)
    assert lines
    for line in lines:
        (command,) = [c for c in COMMANDS if line.startswith(c)] or pytest.fail(f"unknown: {line}")
        options = {word.split("=")[0] for word in shlex.split(line) if word.startswith("-")}
        assert options - set(re.findall(r"(?<!\S)-[-\w]+", helps()[command])) == set(), line


def test_compose_says_which_variables_it_reads() -> None:
    """The comment at its top names all variables that .env may hold."""
    text = COMPOSE.read_text()
    top, rest = text.split("\nname:")
    read = set(re.findall(r"\$\{(\w+)", rest)) | set(
        re.findall(r"^ {4,6}(\w+):(?: +#.*)?$", rest, re.M)
    )
    assert {name for name in read if name.isupper()} == set(
        re.findall(r"\b[A-Z0-9]+_[A-Z_]+\b", top)
    )


def test_no_password_stands_on_a_command_line() -> None:
    """`ps` shows every user the command lines: what the page and the files start gets passwords otherwise."""
    for path in (PAGE, DOCKERFILE, COMPOSE):
        for line in commands(path):
            assert not re.search(r"PASSWORD|SECRET|KEY|://[^/\s]*@", line), (path.name, line)
    literal = r"--from-literal|--(?:backend|registry)-store-uri"
    assert not [path.name for path in (PAGE, COMPOSE) if re.search(literal, path.read_text())]


def test_compose_hangs_together() -> None:
    """Services, volumes and configs that are referred to are there; each server says it is healthy."""
    compose = yaml.safe_load(COMPOSE.read_text())
    services = compose["services"]
    used = set()
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        assert {config["source"] for config in service.get("configs", [])} <= set(
            compose["configs"]
        )
        used |= {volume.split(":")[0] for volume in service.get("volumes", [])}
        for name, what in service.get("depends_on", {}).items():
            if what["condition"] == "service_healthy":
                assert "healthcheck" in services[name]
    assert used == set(compose["volumes"])


def test_the_image_holds_what_is_there() -> None:
    """Every file the Dockerfile copies exists, and its user is the one Kubernetes' volumes go to."""
    text = DOCKERFILE.read_text()
    for line in re.findall(r"^COPY (.*)$", text, re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    pod = json.loads((FOLDER / "pools/kubernetes.json").read_text())["job_configuration"]
    security = pod["job_manifest"]["spec"]["template"]["spec"]["securityContext"]
    assert f"USER {security['fsGroup']}\n" in text


@pytest.mark.parametrize("path", POOLS, ids=named)
def test_a_template_uses_each_of_its_variables(path: Path) -> None:
    """No placeholder without a variable, no variable that changes nothing."""
    template = json.loads(path.read_text())
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])


def commands(path: Path) -> list[str]:
    """Command lines of prefect and mlflow in a file, options of optional parts included."""
    text = path.read_text()
    if path == COMPOSE:
        services: dict[str, Any] = yaml.safe_load(text)["services"]
        lines = [str(service.get("command", "")) for service in services.values()]
        lines = [re.sub(r"\$\{\w+:\+([^}]*)\}", r"\1", line) for line in lines]
    elif path == DOCKERFILE:
        lines = [" ".join(json.loads(words)) for words in re.findall(r"^CMD (.*)$", text, re.M)]
    else:
        blocks = re.findall(r"^```\w+\n(.*?)^```", text, re.M | re.S)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [re.search(r"(?:^|[\s/])((?:prefect|mlflow) .*)", line) for line in lines]
    return [one.group(1) for one in found if one]


@functools.cache
def helps() -> dict[str, str]:
    """What `--help` says of each command; one process for all, as imports take the time."""
    out = subprocess.run(
        [sys.executable, "-c", HELPS, *COMMANDS],
        env=os.environ | {"COLUMNS": "300"},  # long options would be broken over lines
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    helps = out.split("\0")[1:]
    assert len(helps) == len(COMMANDS)
    return dict(zip(COMMANDS, helps, strict=True))
