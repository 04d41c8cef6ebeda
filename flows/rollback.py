"""Roll back: put an earlier champion back, through the same claim as a promotion."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.context import FlowRunContext
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field

from flows import home_folder, run_name
from flows.parameters import FormerVersion, ModelName, WithApproval
from flows.run_context import bare_run
from tasks.contracts import machine_faults
from tasks.contracts.errors import PrecisError
from tasks.register.task import former_champion, require_model, restore

APPROVAL_SECONDS = 24 * 3600


class Approval(RunInput):
    """The form that the UI shows to the person who resumes the run."""

    approve: bool = Field(False, title="Put it back", description="Off: nothing is changed.")
    reason: str = Field("", title="Reason", description="Goes into the version's description.")


@flow(name="rollback", flow_run_name=run_name.typed_or_rollback)
def rollback(name: ModelName, to: FormerVersion = None, approval: WithApproval = False) -> Any:
    """Make version `to` of model `name` champion again (default: the one before the champion).

    With `approval` the run pauses, once that version is loaded and checked, until someone resumes it.
    """
    home_folder.enter()
    try:
        require_model(name)  # a mistyped name must not make an experiment of that name
        with machine_faults.as_errors(), bare_run(name):
            plan = former_champion(name, to)
            reason = ""
            if approval and not plan.in_effect:
                target, current = plan.target, plan.expected
                now = f"v{current.number} ({current.description})" if current else "none"
                answer = _ask(
                    f"Make v{target.number} of {name} champion again? {target.description}\n\n"
                    f"The champion now: {now}"
                )
                if not answer.approve:
                    return Cancelled(message=f"not approved: the champion of {name} stays")
                reason = answer.reason
            version, message = restore(name, plan, reason)
    except FlowPauseTimeout:
        return Cancelled(message=f"nobody answered within a day: the champion of {name} stays")
    except PrecisError as error:
        return Failed(message=str(error), data=error)
    return Completed(name="ROLLED_BACK", message=message, data=version)


def _ask(question: str) -> Approval:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    answer: Approval = pause_flow_run(
        wait_for_input=Approval.with_initial_data(description=question),
        timeout=APPROVAL_SECONDS,
        key=f"approval-{context.flow_run.run_count}",  # the server keeps the answers of earlier attempts
    )
    return answer
