"""MLflow's own scoring server, fitted: every form of request reaches the model, no refusal shows one."""

from __future__ import annotations

import functools
import re
from typing import Any

# What MLflow 3.17 shows of a request in its refusals, cut out of them at its greatest length.
SHOWS_REQUEST = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"^Failed to predict data .*Error: ",  # params or columns that its schema does not take
        r"\s*Input: .*",  # no JSON
        r" Error: 'UnicodeDecodeError.*",
    )
)
FITTED = "_precis_fitted"


def fit_server() -> None:
    """Change this process's `mlflow.pyfunc.scoring_server`, once.

    Of text/csv it asks the schema for pandas types, and MLflow 3.17 has none for columns whose type is open:
    they are read as texts. (Declared as strings, a null and 5 in JSON would be the texts "None" and "5".) A
    row with more fields than the header has names would lose its first ones to pandas's index: it is refused.
    pandas 3 makes no column of a text with half a surrogate pair, unless strings are kept as Python's. And
    where MLflow refuses a request before the model sees it, its answer leaves the request's rows out.
    """
    import pandas
    from mlflow.exceptions import BAD_REQUEST, MlflowException
    from mlflow.pyfunc import scoring_server as server
    from mlflow.types import Schema
    from mlflow.types.schema import AnyType

    if getattr(server, FITTED, False):
        return
    pandas.set_option("mode.string_storage", "python")
    known, parse, answer = Schema.pandas_types, server.parse_csv_input, server.invocations

    def pandas_types(self: Any) -> list[Any]:
        if self.inputs and all(isinstance(column.type, AnyType) for column in self.inputs):
            return [object] * len(self.inputs)
        return list(known(self))

    @functools.wraps(parse)
    def parse_csv_input(*given: Any, **named: Any) -> Any:
        table = parse(*given, **named)
        if len(table) and not isinstance(table.index, pandas.RangeIndex):
            raise MlflowException(
                "rows of the CSV have more fields than its header has names; put texts that hold a comma "
                "between quotes",
                error_code=BAD_REQUEST,
            )
        return table

    @functools.wraps(answer)
    def invocations(*given: Any, **named: Any) -> Any:
        try:
            return answer(*given, **named)
        except MlflowException as error:
            error.message = without_request(error.message)
            raise

    Schema.pandas_types = pandas_types
    server.parse_csv_input, server.invocations = parse_csv_input, invocations
    setattr(server, FITTED, True)


def without_request(message: str) -> str:
    """MLflow's sentence without the request in it."""
    for pattern in SHOWS_REQUEST:
        message = pattern.sub("", message, count=1)
    return message
