"""The endpoints' requests and answers for /openapi.json.

FastAPI would write it from typed endpoints. Those read a body whole before its size is known, and answer 422
in a form that OpenAI's clients do not read; so ours read bytes (guard.py, requests.py), and the schema is
given here.
"""

from __future__ import annotations

from typing import Any

ERRORS = {
    400: "A field that cannot be honoured, by its name",
    401: "The API key is missing or wrong",
    404: "Another model's name",
    413: "Larger than --max-request-bytes",
    415: "Not JSON",
    500: "The model's code, or its engine, failed at this request",
    503: "No version is served at the moment, or too many requests are being answered",
    504: "It took longer than --request-timeout-seconds",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    s: {"description": text} for s, text in ERRORS.items()
}


def takes(kind: type[Any]) -> dict[str, Any]:
    """The request's schema, for /openapi.json."""
    schema = kind.model_json_schema()
    content = {"application/json": {"schema": _inlined(schema, schema.pop("$defs", {}))}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(schema, dict):
        if reference := schema.get("$ref"):
            return _inlined(definitions[reference.rpartition("/")[2]], definitions)
        return {name: _inlined(value, definitions) for name, value in schema.items()}
    return (
        [_inlined(value, definitions) for value in schema] if isinstance(schema, list) else schema
    )
