"""Use a logged model as its users do: in a process that cannot import this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tasks.contracts.documents import Document
from tasks.contracts.errors import RegistryError

# None in sys.modules makes `import flows` and `import tasks` fail, as on a serving machine.
SCRIPT = """
import ctypes, json, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL: end when the step's child does
sys.modules["flows"] = sys.modules["tasks"] = None
import mlflow
call = json.load(open(sys.argv[1]))
# Its warnings are about requirements, for which it reads the files of every package installed here.
model = mlflow.pyfunc.load_model(call["uri"], suppress_warnings=True)
texts = model.predict(call["documents"])
json.dump(list(texts), open(sys.argv[2], "w"))
"""


def predict(uri: str, tracking_uri: str, documents: list[Document]) -> list[Any]:
    """What `mlflow.pyfunc.load_model(uri).predict(documents)` gives in a clean process.

    `tracking_uri`: the MLflow that `uri` is of; importing mlflow here to ask takes seconds.
    Raises RegistryError when the model does not load or predict there.
    """
    folder = Path(os.environ["PRECIS_CHILD_FOLDER"])
    call, answer = folder / "documents.json", folder / "texts.json"
    call.write_text(json.dumps({"uri": uri, "documents": documents}))
    answer.unlink(missing_ok=True)
    # -I: neither this folder nor PYTHONPATH can lend it anything of the project.
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, str(call), str(answer)],
        cwd=folder,
        check=False,
        env=os.environ | {"MLFLOW_TRACKING_URI": tracking_uri},
    )
    if done.returncode:
        raise RegistryError(
            f"{uri} cannot be loaded and used in a clean process (exit status {done.returncode}); "
            f"see {folder / 'log.txt'}"
        )
    texts: list[Any] = json.loads(answer.read_text())
    return texts
