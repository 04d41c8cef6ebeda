"""The link to a model's page at the end of its description in MLflow; what people wrote there stays."""

from __future__ import annotations

import re
from typing import Any

from mlflow.exceptions import MlflowException

from tasks.contracts.errors import RegistryError
from tasks.register import claims

START, END = "<!-- precis: page -->", "<!-- precis: end -->"
# From a start to the next end, without another start between: half of a block is people's text.
BLOCK = re.compile(f"{re.escape(START)}(?:(?!{re.escape(START)}).)*?{re.escape(END)}", re.DOTALL)
MOST_CHARACTERS = 5000  # of a description, in MLflow's database


def with_block(description: str, text: str) -> str:
    """The description with `text` in the marked block: where the block is, or else at the end."""
    block = f"{START}\n{text}\n{END}"
    if BLOCK.search(description):
        return BLOCK.sub(lambda _: block, description, count=1)
    return f"{description}\n\n{block}" if description.strip() else block


def put(client: Any, name: str, text: str) -> None:
    """Write the block if it is not there already; a name without a registered model is left alone.

    Raises RegistryError where there is no room for it, or MLflow fails.
    """
    try:
        before = client.get_registered_model(name).description or ""
        after = with_block(before, text)
        if after == before:
            return
        if len(after) > MOST_CHARACTERS:
            raise RegistryError(
                f"the description of {name!r} is too long for a link to its page: with it, it has "
                f"{len(after):,} characters of {MOST_CHARACTERS:,}; shorten it in MLflow"
            )
        client.update_registered_model(name, after)
    except MlflowException as error:
        if not claims.does_not_exist(error):
            raise RegistryError(f"MLflow registry, model {name!r}: {error}") from error
