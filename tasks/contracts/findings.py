"""What a check of something registered found: differences fail it, remarks do not."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Findings:
    """Sentences. `checked`: what was compared, and is as it should be unless a difference names it."""

    differences: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
