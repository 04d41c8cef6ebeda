"""The file that MLflow runs to serve a package (models from code), and the loader of a package's code.

MLflow copies this one file beside MLmodel; the package, this folder in it, is the model's artifact
`package`. Imported as part of that folder or of the project, this file only defines the loader and does
without MLflow, whose import takes two seconds.
"""

from __future__ import annotations

import importlib.util
import sys
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any

CODE_FOLDER = "summarizer"  # of a package


def load_code(package: Path) -> ModuleType:
    """A package's own code (its folder `summarizer/`), under a module name that nothing else has.

    So versions loaded in one process share no code. The name stays in sys.modules: submodules that are
    imported late, in any thread, are looked up by it. Raises ImportError where the package has no code.
    """
    folder = (package / CODE_FOLDER).absolute()  # late imports must find it from any folder
    if not (folder / "__init__.py").is_file():
        raise ImportError(f"{package} has no {CODE_FOLDER}/__init__.py, the code it is served with")
    name = f"precis_package_{uuid.uuid4().hex}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None  # its name ends in .py
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        for loaded in [key for key in list(sys.modules) if key.partition(".")[0] == name]:
            del sys.modules[loaded]
        raise
    return module


if not __package__:  # run by MLflow, under a name of MLflow's own
    import mlflow
    import pandas

    class Summarizer(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        """`mlflow.pyfunc` around a Generator: documents in, a list of summaries out."""

        def load_context(self, context: Any) -> None:
            """Load the package from the model's artifacts, with its own code."""
            package = Path(context.artifacts["package"])
            self.code = load_code(package)
            self.generator = self.code.Generator(package)

        # From this hint MLflow infers nothing. Of others it makes rules of its own: under list[str] the first
        # column of a DataFrame is all that arrives. What may be given is in request_documents.py.
        def predict(
            self, context: Any, model_input: pandas.DataFrame, params: Any = None
        ) -> list[str]:
            """Summaries of the documents, in their order. Raises ValueError for rows that are none."""
            documents = self.code.documents_of(model_input, self.generator.settings)
            return [summary.text for summary in self.generator.summarize(documents)]

    mlflow.models.set_model(Summarizer())
