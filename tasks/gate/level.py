"""The level of the deciding bound, corrected for repeated looks at one evaluation set."""

from __future__ import annotations

from tasks.contracts.recipe import Gate


def level(gate: Gate, looks: int) -> float:
    """Alpha of the primary bound at the `looks`-th challenger judged on one evaluation set.

    gate.looks "correct" gives alpha/looks^2. The levels of any number of looks add up to at most
    1.64 alpha (a union bound, as in alpha spending: Lan & DeMets 1983): at 0.05, at most one false
    promotion for twelve champions, however many challengers are tried. With a new champion, and with fresh
    evaluation data, the count starts again. What earlier looks have spent already widens the bound
    (earlier_looks.py).
    """
    if looks < 1:
        raise ValueError(f"looks counts this challenger too, so it is at least 1, not {looks}")
    return gate.alpha / looks**2 if gate.looks == "correct" else gate.alpha
