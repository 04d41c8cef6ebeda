"""The errors that a user meets:

PrecisError                 something that a user can fix; raised itself where no class below fits
├── RecipeError             the recipe is not valid; all its problems at once
├── DataError               input rows or files cannot be used; all problems at once, by file and line
├── BaseModelError          the base model cannot be found, or does not fit the recipe
├── TrainingError           training failed, or its checkpoints are in use
├── MergeError              the adapter cannot be merged, or the merged model drifted from it
├── EvaluationError         generation or scoring failed; nothing is scored as zero instead
│   └── SealBroken          scores under different evaluation digests would be compared
├── RegistryError           MLflow cannot be reached, or refuses
│   ├── NoSuchChampion      there is no champion to evaluate, or no earlier one to roll back to
│   ├── Overtaken           another champion was promoted in the meantime; decide again
│   ├── ChampionMoved       something other than precis moved the alias `champion`
│   └── ServedModelDiffers  the registered model does not reproduce what was judged
├── ServerError             the Prefect server cannot be reached, or has no such deployment
└── ChildFailed             a step's process ended without a result: killed, or out of memory

The message of each says what is wrong, where, and how to fix it; the command prints it without a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.contracts.credentials import redact


class PrecisError(Exception):
    """Base class of all our errors: a user can fix it, and the message says what, where and how.

    Passwords and tokens that a message would hold are blanked: it is printed, logged and stored.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(redact(value) if isinstance(value, str) else value for value in args))

    @classmethod
    def of(cls, problems: Sequence[str]) -> PrecisError:
        """One error for all problems of an input, a line each."""
        return cls("\n".join(problems))


class RecipeError(PrecisError):
    """The recipe is not valid."""


class DataError(PrecisError):
    """Input files or rows cannot be used."""


class BaseModelError(PrecisError):
    """The base model cannot be found, or does not fit the recipe."""


class TrainingError(PrecisError):
    """Training failed, or another process uses its checkpoints."""


class MergeError(PrecisError):
    """The adapter cannot be merged into this base, or the merged model drifted."""


class EvaluationError(PrecisError):
    """Generation or scoring failed."""


class SealBroken(EvaluationError):
    """Scores of different evaluation sets, prompts or metrics would be compared."""


class RegistryError(PrecisError):
    """The MLflow registry cannot be reached, or refuses."""


class StoreUnavailable(RegistryError):
    """MLflow or its artifact store did not answer: the same may succeed later."""


class NoSuchChampion(RegistryError):
    """There is no champion to evaluate, or no such earlier one to roll back to."""


class ChampionMoved(RegistryError):
    """The champion alias was moved by something other than precis."""


class Overtaken(RegistryError):
    """Another champion was promoted since the one that this decision is about was read."""


class ServedModelDiffers(RegistryError):
    """The logged model does not reproduce the summaries that it was judged by."""


class ServerError(PrecisError):
    """The Prefect server cannot be reached, or has no such deployment."""


class ChildFailed(PrecisError):
    """A step's own process ended without a result."""


def _tree(root: type[PrecisError]) -> dict[str, type[PrecisError]]:
    classes = {root.__name__: root}
    for child in root.__subclasses__():
        classes |= _tree(child)
    return classes


def by_name(name: str) -> type[PrecisError]:
    """The class of that name in the tree above; an unknown name is a ChildFailed."""
    return _tree(PrecisError).get(name, ChildFailed)
