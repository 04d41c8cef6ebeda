"""Packages on disk: making one of a model folder. Imports no torch.

A package is a model folder in Hugging Face format with `summarizer.json` and `summarizer/` added:
what is judged, registered and served. The untuned base becomes a package too, by links.
"""

from __future__ import annotations

from pathlib import Path

from tasks.contracts import digest
from tasks.contracts.records import ModelRef
from tasks.models import chat_templates, package_code, rope_view
from tasks.models.prepared_base import PreparedBase
from tasks.serving.summarizer import SETTINGS_FILE, SummarizerSettings


def add_summarizer(package: Path, settings: SummarizerSettings) -> None:
    """Make a model folder a package: write `summarizer.json` and copy the serving code.

    A chat template also goes where transformers looks for one; merged models get more files for other
    engines (engine_files.py).
    """
    # It may be a link to the base's file, if the base is a package itself.
    (package / SETTINGS_FILE).unlink(missing_ok=True)
    settings.save(package)
    if settings.chat_template is not None:
        file = package / chat_templates.FILE
        file.unlink(missing_ok=True)
        file.write_text(settings.chat_template, encoding="utf-8")
    package_code.copy_code(package)


def package_base(base: PreparedBase, settings: SummarizerSettings, folder: Path) -> ModelRef:
    """The untuned base as a package: links to its files, so no weights are copied."""
    config = base.path / "config.json"
    rope_view.link_files(base.path, folder, {config.name: config.read_text()})
    add_summarizer(folder, settings)
    return ModelRef(str(folder), digest.of_folder(folder), base.digest)
