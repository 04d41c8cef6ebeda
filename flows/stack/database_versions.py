"""Databases that another Prefect or MLflow made: told before a server starts on one, not by its traceback.

Both stamp their databases with a revision (Alembic's). One that the installed version does not know is of
a newer version, as a rule. Prefect migrates an older one by itself; MLflow's server refuses it.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.metadata import version
from pathlib import Path

from tasks.contracts.errors import PrecisError

RECORD = "versions.json"  # which versions last ran on a folder's databases
REVISION = re.compile(r"^revision(?:: str)? = [\"'](\w+)[\"']", re.MULTILINE)
DOWN = re.compile(r"^down_revision(?:: [^=]+)? = [\"'](\w+)[\"']", re.MULTILINE)
MIGRATIONS = {
    "prefect": "prefect/server/database/_migrations/versions",
    "mlflow": "mlflow/store/db_migrations/versions",
}


def require_known(databases: dict[str, str], folder: Path) -> None:
    """Raise PrecisError, naming both versions and both ways out, for databases of another version.

    `databases`: SQLAlchemy URIs by "prefect" and "mlflow". `folder`: the stack's, where `record` wrote.
    """
    before = _recorded(folder)
    problems = [
        _problem(name, uri, before.get(name, ""))
        for name, uri in databases.items()
        if (found := _revision(uri)) and _refused(name, found)
    ]
    if problems:
        raise PrecisError("\n".join(problems))


def record(folder: Path) -> None:
    """Note which versions have run on the databases."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps({name: version(name) for name in MIGRATIONS}))


def _recorded(folder: Path) -> dict[str, str]:
    try:
        values = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _refused(name: str, revision: str) -> bool:
    known, heads = _known(name)
    return revision not in known or (name == "mlflow" and revision not in heads)


def _problem(name: str, uri: str, before: str) -> str:
    """What is wrong with a database that is refused, and both ways out."""
    revision = _revision(uri)
    package, title = name, {"prefect": "Prefect", "mlflow": "MLflow"}[name]
    ours = f"{title} {version(package)}"
    place = uri.removeprefix("sqlite:///").removeprefix("sqlite+aiosqlite:///")
    known = revision in _known(name)[0]
    was = before if before and before != version(package) else ""
    theirs = (
        f"{title} {was}"
        if was
        else f"{'an earlier' if known else 'another, most likely newer,'} {title}"
    )
    again = f"{package}=={was}" if was else f"{package}==VERSION"
    shown = re.sub(r"//[^/@]*@", "//***@", place)
    if known:
        out = f"upgrade it, after a copy: mlflow db upgrade '{re.sub(r'//[^/@]*@', '//***@', uri)}'"
    else:
        out = (
            "put the database aside (its runs and models are then not seen), and a new one is made"
        )
    return (
        f"the database {shown} was made by {theirs} (revision {revision}), and {ours} does not work on it: "
        f"install that version again (pip install '{again}'), or {out}"
    )


@cache
def _known(name: str) -> tuple[frozenset[str], frozenset[str]]:
    """The revisions that the installed version knows, and the newest."""
    import importlib.util

    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parents[1] / MIGRATIONS[name]
    texts = [path.read_text() for path in folder.rglob("*.py")]
    known = frozenset(found for text in texts for found in REVISION.findall(text))
    return known, known - frozenset(found for text in texts for found in DOWN.findall(text))


def _revision(uri: str) -> str:
    """The revision that a database is stamped with; empty where there is none, or no database yet."""
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    uri = uri.replace("+aiosqlite", "").replace("+asyncpg", "+psycopg2")
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).exists():
        return ""
    engine = sqlalchemy.create_engine(uri)
    try:
        with engine.connect() as connection:
            found = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version"))
            return str(found.scalar() or "")
    except SQLAlchemyError:
        return ""  # a new database; one that is broken is told by its server
    finally:
        engine.dispose()
