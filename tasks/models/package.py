"""Packages on disk: making one of a model folder, and loading the code of one. Imports no torch.

A package is a model folder in Hugging Face format with `summarizer.json` and `summarizer.py` added:
all that is judged, registered and served. The untuned base becomes a package too, by links.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

from tasks.contracts import digest
from tasks.contracts.records import ModelRef
from tasks.models import chat_templates, rope_view
from tasks.models.prepared_base import PreparedBase
from tasks.serving import summarizer
from tasks.serving.summarizer import SummarizerSettings


def add_summarizer(package: Path, settings: SummarizerSettings) -> None:
    """Make a model folder a package: write `summarizer.json` and copy `summarizer.py`.

    A chat template also goes where transformers and other servers look for one.
    """
    # What stands there may be a link to the base's own, if that is a package itself.
    for name in (summarizer.SETTINGS_FILE, summarizer.CODE_FILE, summarizer.DECODER_FILE):
        (package / name).unlink(missing_ok=True)
    settings.save(package)
    if settings.chat_template is not None:
        file = package / chat_templates.FILE
        file.unlink(missing_ok=True)
        file.write_text(settings.chat_template, encoding="utf-8")
    code = Path(summarizer.__file__)
    shutil.copyfile(code, package / summarizer.CODE_FILE)
    if settings.decoding != "generate":
        decoder = code.with_name(summarizer.DECODER_FILE)
        shutil.copyfile(decoder, package / summarizer.DECODER_FILE)


def package_base(base: PreparedBase, settings: SummarizerSettings, folder: Path) -> ModelRef:
    """The untuned base as a package: links to its files, so no weights are copied."""
    config = base.path / "config.json"
    rope_view.link_files(base.path, folder, {config.name: config.read_text()})
    add_summarizer(folder, settings)
    return ModelRef(str(folder), digest.of_folder(folder), base.digest)


def load_code(package: Path) -> ModuleType:
    """The package's own summarizer.py: the file that is served, whatever this project's says now."""
    # A dotted name gives it a __package__, so that it only defines and registers nothing with MLflow.
    name = "precis_package.summarizer"
    spec = importlib.util.spec_from_file_location(name, package / summarizer.CODE_FILE)
    if spec is None or spec.loader is None:
        raise ImportError(f"{package / summarizer.CODE_FILE} is not Python code")
    code = importlib.util.module_from_spec(spec)
    sys.modules[name] = code  # dataclasses look their module up while it is being executed
    try:
        spec.loader.exec_module(code)
    finally:
        del sys.modules[name]
    return code
