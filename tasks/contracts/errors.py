"""What can go wrong, as a user meets it.

PrecisError                 anything a person can mend; its text says what, where and the mend
├── RecipeError             the recipe is not valid (all problems at once)
├── DataError               input rows or files (all problems at once, with file and line)
├── BaseModelError          the base model cannot be found or does not fit
├── TrainingError           training failed, or its checkpoints are in use
├── MergeError              the adapter cannot be merged, or the merged model drifted from it
├── EvaluationError         generation or scoring failed; nothing is ever scored as zero instead
│   └── SealBroken          scores of different evaluation digests met in one comparison
├── RegistryError           MLflow cannot be reached, or refuses
│   ├── NoSuchChampion      there is nothing to roll back to, or to evaluate
│   ├── Overtaken           another champion was promoted meanwhile; look, and decide again
│   ├── ChampionMoved       the alias no longer stands where the history left it
│   └── ServedModelDiffers  the registered model does not reproduce what was judged
├── ServerError             the Prefect server cannot be reached, or has no such deployment
└── ChildFailed             a step's process ended without an answer (killed, out of memory)
"""

from __future__ import annotations

from collections.abc import Sequence


class PrecisError(Exception):
    """Something a person can mend; the message says what, where and how."""

    @classmethod
    def of(cls, problems: Sequence[str]) -> PrecisError:
        """One error for all problems of an input, a line each."""
        return cls("\n".join(problems))


class RecipeError(PrecisError):
    """The recipe is not valid."""


class DataError(PrecisError):
    """Input files or rows are not usable."""


class BaseModelError(PrecisError):
    """The base model cannot be found, or does not fit the recipe."""


class TrainingError(PrecisError):
    """Training failed, or another process holds its checkpoints."""


class MergeError(PrecisError):
    """The adapter cannot be merged into this base, or the merged model drifted."""


class EvaluationError(PrecisError):
    """Generation or scoring failed."""


class SealBroken(EvaluationError):
    """Scores taken on different evaluation sets, prompts or metrics met."""


class RegistryError(PrecisError):
    """The MLflow registry cannot be reached, or refuses."""


class NoSuchChampion(RegistryError):
    """There is no champion to evaluate, or no such former one to roll back to."""


class ChampionMoved(RegistryError):
    """The champion alias was moved by something other than precis."""


class Overtaken(RegistryError):
    """Another champion was promoted between the question and the answer."""


class ServedModelDiffers(RegistryError):
    """The logged model does not give back the summaries it was judged by."""


class ServerError(PrecisError):
    """The Prefect server cannot be reached, or lacks what is asked of it."""


class ChildFailed(PrecisError):
    """A step's own process ended without an answer."""


def _tree(root: type[PrecisError]) -> dict[str, type[PrecisError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


def by_name(name: str) -> type[PrecisError]:
    """The class of that name in the tree above; an unknown name is a ChildFailed."""
    return _tree(PrecisError).get(name, ChildFailed)
