"""The code that a package carries and is served with: copied in, and loaded from there again.

A package's code is the folder `summarizer/`, a copy of tasks/serving/summarizer. Before there was that
folder it was the file summarizer.py, with continuous.py where decoding was not generate's: such packages
are loaded as well, since a champion may be one.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

from tasks.contracts import digest
from tasks.serving import summarizer
from tasks.serving.summarizer import pyfunc

EARLIER_FILE = "summarizer.py"
EARLIER_FILES = (EARLIER_FILE, "continuous.py")


def copy_code(package: Path) -> None:
    """Put this project's serving code into a package, in place of what is there.

    What is there may be links to the base's own code, if the base is a package itself. Each file is put
    in place at once: other runs may be reading the package, or doing the same.
    """
    source, folder = Path(summarizer.__file__).parent, package / pyfunc.CODE_FOLDER
    for name in EARLIER_FILES:
        (package / name).unlink(missing_ok=True)
    if folder.is_symlink():
        folder.unlink()
    folder.mkdir(exist_ok=True)
    files = {file.relative_to(source) for file in digest.visible_files(source)}
    for file in files:
        partial = folder / f".{file.name}.{os.getpid()}"
        shutil.copyfile(source / file, partial)
        partial.replace(folder / file)
    for file in digest.visible_files(folder):
        if file.relative_to(folder) not in files:
            file.unlink(missing_ok=True)


def load_code(package: Path) -> ModuleType:
    """The package's own code, which is what is served, whatever this project's is now.

    Each call gives a module of its own: no two packages share code. Raises ImportError where the
    package has none.
    """
    if (package / EARLIER_FILE).is_file() and not (package / pyfunc.CODE_FOLDER).is_dir():
        return _load_file(package / EARLIER_FILE)
    return pyfunc.load_code(package)


def _load_file(file: Path) -> ModuleType:
    # A dotted name gives it a __package__, so that it only defines and registers nothing with MLflow.
    name = "precis_package.summarizer"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not Python code")
    code = importlib.util.module_from_spec(spec)
    sys.modules[name] = code  # dataclasses look their module up while it is being executed
    try:
        spec.loader.exec_module(code)
    finally:
        del sys.modules[name]
    return code
