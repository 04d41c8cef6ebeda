"""Custom operations that torch.compile does not look into, at little cost a call.

torch.library.custom_op does the same with checks and wrappers in Python around every call: about
0.1 ms, six times a decoder layer and step, which is more than the GPU needs for a small layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("precis", "FRAGMENT")


def operation(schema: str, compute: Callable[..., Any], shapes: Callable[..., Any]) -> Any:
    """Define `precis::NAME` with this schema; `shapes` makes empty outputs for a compiler.

    It has no gradient: call it within a torch.autograd.Function.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.needs_exact_strides,))
    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"precis::{name}", shapes, lib=_LIBRARY)
    return getattr(torch.ops.precis, name).default
