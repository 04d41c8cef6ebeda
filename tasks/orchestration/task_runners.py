"""Run parts of a step as Prefect tasks on a Dask or Ray cluster, with Prefect's own task runners.

    answers = run("dask:tcp://host:8786", task, [{"number": 1}, {"number": 2}], "evaluation.cluster")

`dask` or `ray` alone starts a cluster on this machine, with a process for each call, and ends it
afterwards. Flow run, settings (the Prefect API's address) and tags go with each task: prefect.context.
The libraries are optional, and imported only when a cluster is used.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prefect.futures import as_completed

from tasks.contracts.errors import ChildFailed, EvaluationError, PrecisError
from tasks.orchestration import cluster_worker
from tasks.processes import device

Submit = Callable[[Any, dict[str, Any]], Any]
LIBRARIES = {"dask": "prefect_dask", "ray": "prefect_ray"}
LOCAL = "127.0.0.1"


def problems(setting: str, where: str, count: int) -> list[str]:
    """Why `count` calls cannot run at `where`, the value of `setting`; each problem with how to fix it."""
    engine, _, address = where.partition(":")
    name = LIBRARIES[engine].replace("_", "-")
    problems = []
    if importlib.util.find_spec(LIBRARIES[engine]) is None:
        problems.append(
            f"{setting} is {where}, and {name} is not installed: pip install -c constraints.txt {name} "
            "(here, and where the workers run)"
        )
    gpus = device.count()
    if not address and gpus and gpus < count:
        problems.append(
            f"{setting} is {where} for {count} processes, each with a GPU, and this machine has {gpus} "
            f"GPUs; lower the number, or name a cluster that has them ({engine}:ADDRESS)"
        )
    return problems


def threads(where: str, count: int) -> int | None:
    """CPU threads of a call on a cluster of this machine; None where the workers' environment decides."""
    return None if ":" in where else max(1, (os.cpu_count() or 1) // count)


def run(
    where: str,
    task: Any,
    calls: Sequence[dict[str, Any]],
    setting: str,
    on_end: Callable[[Any], None] = lambda _: None,
) -> list[Any]:
    """Call the Prefect task `task` with each of the parameters `calls`; the answers in their order.

    `setting` is named in errors; `on_end` gets each answer as it comes. The first failure cancels the
    other calls and is raised, a PrecisError unchanged. Raises EvaluationError when the cluster does not
    answer, ChildFailed when a call ended without an answer.
    """
    if reasons := problems(setting, where, len(calls)):
        raise EvaluationError("\n".join(reasons))
    answers: dict[Any, Any] = {}
    with _runner(where, len(calls), setting) as submit:
        futures = [submit(task, call) for call in calls]
        try:
            for future in as_completed(futures):
                answers[future] = _answer(future, where)
                on_end(answers[future])
        finally:
            for future in futures:
                if future not in answers:
                    _cancel(future, where)
    return [answers[future] for future in futures]


def _answer(future: Any, where: str) -> Any:
    try:
        return future.result()
    except PrecisError:
        raise
    except Exception as error:
        raise ChildFailed(
            f"a call on {where} ended without an answer ({type(error).__name__}: {error}); see its "
            "task run, and the cluster's own logs"
        ) from error


def _cancel(future: Any, where: str) -> None:
    if where.startswith("ray"):
        import ray

        ray.cancel(future.wrapped_future)  # KeyboardInterrupt in the worker
    else:
        future.wrapped_future.cancel()  # a call that has begun asks: cluster_worker.cancelled


@contextlib.contextmanager
def _runner(where: str, count: int, setting: str) -> Iterator[Submit]:
    """Connect to the cluster, or start one; yields a function that submits a task with its parameters."""
    engine, _, address = where.partition(":")
    with contextlib.ExitStack() as stack:
        try:
            start = _ray if engine == "ray" else _dask
            submit = start(stack, address, count)
        except Exception as error:
            raise EvaluationError(
                f"{setting} is {where}, and it does not answer ({type(error).__name__}: {error}); start "
                "it with the same versions of Python and its libraries as here, or correct the address"
            ) from error
        yield submit


def _dask(stack: contextlib.ExitStack, address: str, count: int) -> Submit:
    from prefect_dask import DaskTaskRunner

    runner = DaskTaskRunner(address=address) if address else _local_dask(stack, count)
    stack.enter_context(runner)
    client = runner.client  # connects
    if not address:
        stack.callback(client.run, cluster_worker.finish, on_error="ignore")
    submit: Submit = runner.submit
    return submit


def _local_dask(stack: contextlib.ExitStack, count: int) -> Any:
    """A cluster on this machine: `count` processes with a GPU each, one call at a time."""
    import dask
    import distributed
    from prefect_dask import DaskTaskRunner

    logger = logging.getLogger("distributed")
    stack.callback(logger.setLevel, logger.level)
    logger.setLevel(logging.ERROR)
    quiet = {"distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED": "error"}
    stack.enter_context(dask.config.set(quiet))
    # Like LocalCluster, whose workers cannot each have an environment. The memory is not limited: it is
    # used by the step processes that the workers start.
    scheduler = {"host": LOCAL, "port": 0, "dashboard_address": f"{LOCAL}:0"}
    each = {"host": LOCAL, "nthreads": 1, "memory_limit": 0}
    workers = {
        i: {"cls": distributed.Nanny, "options": each | {"env": env}}
        for i, env in enumerate(gpu_each(count))
    }
    return DaskTaskRunner(
        cluster_class=distributed.SpecCluster,
        cluster_kwargs={
            "scheduler": {"cls": distributed.Scheduler, "options": scheduler},
            "workers": workers,
        },
    )


def gpu_each(count: int) -> list[dict[str, str]]:
    """For each of `count` processes of this machine, the variables that give it its own GPU."""
    gpus = device.count()
    if not gpus:
        return [{} for _ in range(count)]
    named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    return [{"CUDA_VISIBLE_DEVICES": name.strip()} for name in named.split(",")[:count]]


def _ray(stack: contextlib.ExitStack, address: str, count: int) -> Submit:
    import ray
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options

    settings = {"log_to_driver": False}  # standard output is for the decision
    local = {"address": "local", "num_cpus": count, "include_dashboard": False}
    runner = RayTaskRunner(address or None, init_kwargs=settings if address else settings | local)
    stack.enter_context(runner)
    # A Ray task that asks for no GPU sees none.
    stack.enter_context(remote_options(num_gpus=1 if ray.cluster_resources().get("GPU") else 0))
    submit: Submit = runner.submit
    return submit
