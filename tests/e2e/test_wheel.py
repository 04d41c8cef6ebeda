"""A wheel of this repository, installed in a clean environment, does the same from another folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment's Python that has the built wheel; libraries are this environment's own."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build writes into its source folder
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in files.stdout.split("\0"):
        if name and not name.startswith("tests/"):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, source], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    installed = folder / "venv/bin/python"
    site = subprocess.run(
        [installed, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    wheel = next(folder.glob("precis-*.whl"))
    target = ["--python", str(installed), "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, *target, wheel], check=True)
    libraries = [sysconfig.get_path("purelib"), *filter(_is_site, sys.path)]
    (Path(site) / "libraries.pth").write_text("\n".join(dict.fromkeys(libraries)))
    return installed


def _is_site(path: str) -> bool:
    return Path(path).name == "site-packages"


def test_the_demo_recipe_runs_from_another_folder(python: Path, tmp_path: Path) -> None:
    """Recipe and data copied there, nothing else of the checkout: a challenger is judged."""
    for name in ("recipes", "demo"):
        shutil.copytree(ROOT / "deployments" / name, tmp_path / "deployments" / name)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "PRECIS_"))}
    env |= {"PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONPATH": ""}
    origin = subprocess.run(
        [python, "-c", "import tasks; print(tasks.__file__)"],
        cwd=tmp_path,
        env=env,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert Path(origin).is_relative_to(python.parents[1])
    settings = ["data.train_rows=16", "data.evaluation_rows=8", "evaluation.max_new_tokens=16"]
    command = [python.with_name("precis"), "run", "deployments/recipes/demo.yaml", "--json"]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["verdict"] in {"PROMOTE", "REJECT", "INCONCLUSIVE"}


def test_the_wheel_holds_what_precis_up_deploys(python: Path) -> None:
    """Deployments, recipes and pools are inside; so are the templates of the report."""
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    )
    for pattern in (
        "deployments/prefect.yaml",
        "deployments/recipes/demo.yaml",
        "deployments/pools/*",
        "tasks/report/*.html",
    ):
        assert list(site.glob(pattern)), pattern
