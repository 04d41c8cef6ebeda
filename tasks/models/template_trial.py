"""Chat templates are programs of others: tried in a process of its own, with little time and memory.

transformers' sandbox keeps a template from files and from one long loop, not from loops in loops nor from
a text of many gigabytes. The environment here is made as transformers makes its own, whose import takes
seconds; what passes is rendered by transformers afterwards, and must be the same.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from tasks.processes.supervised import PYTHON_MODULE

# Of compiling and rendering alone: starting Python, imports and reading the job are before it.
CPU_SECONDS, MEMORY_BYTES = 5, 512 << 20
WAIT_SECONDS = 60  # on a busy machine, where five seconds of computing take long
Message = dict[str, Any]


@dataclass(frozen=True)
class Rendering:
    """A conversation as the template writes it, or why it does not."""

    text: str
    error: str | None = None


@dataclass(frozen=True)
class Trial:
    """What a template did in its process."""

    renderings: tuple[Rendering, ...] = ()
    asked_date: bool = False  # it called strftime_now
    repeatable: bool = True  # it wrote the same twice
    failure: str | None = None  # it was ended, or could not be read


def render_apart(
    template: str, conversations: list[list[Message]], variables: dict[str, Any]
) -> Trial:
    """Each conversation, rendered twice in a process of its own; after a question ready for an answer.

    `variables`: the tokenizer's special tokens by name.
    """
    job = {"template": template, "conversations": conversations, "variables": variables}
    return _run(json.dumps(job))


@functools.lru_cache(maxsize=8)  # the probe is the same for each input that a process looks at
def _run(job: str) -> Trial:
    command = [*PYTHON_MODULE, "tasks.models.template_trial"]
    try:
        done = subprocess.run(
            command,
            check=False,
            input=job,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Trial(failure=f"it did not end within {WAIT_SECONDS} s")
    if done.returncode < 0:
        return Trial(
            failure=f"it did not end within {CPU_SECONDS} s of computing, or asked for too much memory"
        )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines() or ["no output"]
        return Trial(failure=lines[-1][:300])
    renderings = tuple(Rendering(**rendering) for rendering in answer.pop("renderings"))
    return Trial(renderings, **answer)


def _main() -> None:
    job = json.load(sys.stdin)
    _limit()
    asked: list[str] = []
    try:
        compiled = _environment(asked).from_string(job["template"])
    except Exception as error:  # noqa: BLE001 - a template fails in any way
        print(json.dumps({"renderings": [], "failure": _message_of(error)}))
        return
    renderings, repeatable = [], True
    for conversation in job["conversations"]:
        values = job["variables"] | {
            "messages": conversation,
            "tools": None,
            "documents": None,
            "add_generation_prompt": conversation[-1]["role"] == "user",
        }
        try:
            text = compiled.render(**values)
            repeatable = repeatable and text == compiled.render(**values)
            renderings.append({"text": text})
        except Exception as error:  # noqa: BLE001 - a template fails in any way
            renderings.append({"text": "", "error": _message_of(error)})
    answer = {"renderings": renderings, "asked_date": bool(asked), "repeatable": repeatable}
    print(json.dumps(answer))


def _environment(asked: list[str]) -> Any:
    """transformers' environment for chat templates; `asked` gets the forms in which the date was asked."""
    from jinja2 import TemplateError, ext, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        """`{% generation %}` marks what an assistant wrote; it gives back what stands in it."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 has it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def strftime_now(form: str) -> str:
        asked.append(form)
        return "1 January 2000"

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment


def _message_of(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it asks for more than {MEMORY_BYTES >> 20} MiB"
    return str(error) or type(error).__name__


def _limit() -> None:
    """Let the system end this process when it computes too long or asks for too much."""
    import resource

    import jinja2.ext  # what imports take is not the template's
    import jinja2.sandbox  # noqa: F401
    import psutil

    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS
    now_bytes = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (now_bytes + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _main()
