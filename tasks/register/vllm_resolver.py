"""vLLM's plugin: a request's model `NAME@champion` or `NAME/3` is a checked adapter of the served base.

vLLM loads it in its own processes, where precis is installed beside it (entry point `vllm.general_plugins`).
It does nothing unless PRECIS_ADAPTERS names a folder, and vLLM asks it only under
VLLM_ALLOW_RUNTIME_LORA_UPDATING. vLLM is imported when it has asked, Prefect never.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
import re
from pathlib import Path
from typing import Any

FOLDER = "PRECIS_ADAPTERS"  # environment variable: where pulled adapters are kept
NAMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(@[A-Za-z0-9_.-]+|/[0-9]+)")


def register() -> None:
    """Tell vLLM of the resolver, if PRECIS_ADAPTERS says where adapters are to lie."""
    if folder := os.environ.get(FOLDER):
        resolver = importlib.import_module("vllm.lora.resolver")
        kind: Any = type("PrecisResolver", (_Resolver, resolver.LoRAResolver), {})
        resolver.LoRAResolverRegistry.register_resolver("precis", kind(Path(folder)))


class _Resolver:
    """vLLM's LoRAResolver over MLflow's registry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """A LoRARequest for the adapter; None for a name that is not of precis' form.

        Raises ValueError, which vLLM answers with 400 and the message: for a model that does not exist, that
        holds no adapter or one of another base than the served one, and for files that are not as judged.
        """
        if not NAMED.fullmatch(lora_name):
            return None
        path = await asyncio.to_thread(adapter_of, lora_name, Path(base_model_name), self.folder)
        kind = importlib.import_module("vllm.lora.request").LoRARequest
        return kind(
            lora_name=lora_name, lora_int_id=1, lora_path=str(path)
        )  # vLLM gives the number


def adapter_of(name: str, served: Path, folder: Path) -> Path:
    """The adapter's folder, below `folder`: fetched if it is not there, and checked.

    `served`: the base that vLLM serves. Raises ValueError as `resolve_lora`.
    """
    from tasks.contracts.errors import PrecisError
    from tasks.register.pull_adapter import pull_for_base
    from tasks.tracking import connection

    if not served.is_dir():
        raise ValueError(
            f"{name} cannot be served: vLLM serves {served}, which is no folder of `precis pull --adapter`, "
            "and adapters belong on the base that they were trained on"
        )
    try:
        pulled = pull_for_base(connection.connect(), name, folder, _digest_of(served.absolute()))
    except PrecisError as error:
        raise ValueError(f"{name} cannot be served: {error}") from error
    return pulled.folder


@functools.cache
def _digest_of(served: Path) -> str:
    """The served base's digest. Read once: vLLM has its weights in memory by then."""
    from tasks.serving.summarizer import adapter

    return adapter.StoredBase("", "", adapter.digests_in(served)).digest
