"""Prefect automations and limits that the deployments lean on; installing them twice changes nothing.

- zombies: a run whose heartbeats stop is Crashed, so that it can be retried
- new data: arrivals for a model, once they pause, start the cheap check that counts new rows
- decay: a champion found decayed starts a retrain
- notifications: verdicts and failures go to a webhook, in Slack's form or plain, where one is named

Prefect's own `triggers:` in prefect.yaml are made anew at each deploy, which forgets a pause that is
under way; these are compared and left alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.events.actions import CallWebhook, ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

# Other teams' flows may have the same names: ours are tagged, in prefect.yaml and by `precis`.
OURS = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.precis"}
PAGE = 200
# Four heartbeats of 30 seconds: one or two may be late on a busy server.
HEARTBEAT_WINDOW = timedelta(seconds=120)
# Uploads come in bursts; the check starts when none has come for this long.
DEBOUNCE = timedelta(seconds=float(os.environ.get("PRECIS_DEBOUNCE_SECONDS", "60")))
GPU_LIMIT = "precis-gpu"
WEBHOOKS = {"slack": "PRECIS_SLACK_WEBHOOK", "plain": "PRECIS_WEBHOOK"}

LINE = (
    "{% if event.event == 'precis.verdict' %}{{ event.payload.headline }}"
    "{% for reason in event.payload.reasons %}\n- {{ reason }}{% endfor %}"
    "{% else %}{{ event.resource['prefect.resource.name'] }} {{ event.resource['prefect.state-name'] }}: "
    "{{ event.resource['prefect.state-message'] }}{% endif %}"
)
SLACK = "{% set line %}" + LINE + '{% endset %}{"text": {{ line | tojson }}}'
PLAIN = (
    "{% set line %}" + LINE + "{% endset %}"
    '{"event": {{ event.event | tojson }}, "id": {{ event.id | string | tojson }}, '
    '"resource": {{ event.resource["prefect.resource.name"] | tojson }}, '
    '"text": {{ line | tojson }}, "payload": {{ event.payload | tojson }}}'
)


def install() -> list[str]:
    """Create or correct everything on the server at PREFECT_API_URL; the automations' names."""
    with get_client(sync_client=True) as client:
        _gpu_limit(client)
        wanted = [_zombies(), *_by_deployment(client), *_notifications()]
        for automation in wanted:
            _put(client, automation)
        for other in _all(client.read_automations):
            if other.name.startswith("precis: ") and other.name not in {a.name for a in wanted}:
                if other.name.startswith("precis: verdicts"):
                    continue  # installed when the webhook was named; removing it is a person's act
                client.delete_automation(other.id)
        return [automation.name for automation in wanted]


def _all(read: Callable[..., list[Any]]) -> list[Any]:
    """Every page."""
    found: list[Any] = []
    while len(page := read(limit=PAGE, offset=len(found))) == PAGE:
        found += page
    return [*found, *page]


def _put(client: SyncPrefectClient, wanted: AutomationCore) -> None:
    """Create an automation, or change the one of that name only if it says something else."""
    found = client.read_automations_by_name(wanted.name)
    if not found:
        client.create_automation(wanted)
        return
    # A person may have switched it off: that stays.
    wanted = wanted.model_copy(update={"enabled": found[0].enabled})
    if _said(found[0]) != _said(wanted):
        # The server refuses an update that as much as mentions the owner.
        said = wanted.model_dump(exclude={"owner_resource"})
        client.update_automation(found[0].id, AutomationCore(**said))


def _said(automation: AutomationCore) -> dict[str, Any]:
    found = automation.model_dump(mode="json", include={"description", "trigger", "actions"})
    for names in ("after", "expect", "for_each"):  # sets: each process lists them in its own order
        found["trigger"][names] = sorted(found["trigger"][names])
    return found


def _zombies() -> AutomationCore:
    return AutomationCore(
        name="precis: zombies",
        description="A run whose heartbeats stop is crashed; retry it from the UI.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=OURS,
            after={"prefect.flow-run.heartbeat"},
            # Verdicts are state names, and so events of their own: any event is a sign of life.
            expect={"prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            threshold=1,
            within=HEARTBEAT_WINDOW,
        ),
        actions=[
            ChangeFlowRunState(
                state="CRASHED",
                message=f"no heartbeat for {HEARTBEAT_WINDOW.total_seconds():.0f} seconds: the "
                "process or its machine is gone; a retry goes on where it stopped",
            )
        ],
    )


def _by_deployment(client: SyncPrefectClient) -> Iterator[AutomationCore]:
    """Two for each model: what arrives and what decays."""
    for deployment in _all(client.read_deployments):
        flow = client.read_flow(deployment.flow_id).name
        recipe = deployment.parameters.get("recipe")
        if "precis" not in deployment.tags or flow not in ("check-data", "retrain"):
            continue
        if not (isinstance(recipe, dict) and "name" in recipe):
            continue
        model, start = recipe["name"], [RunDeployment(deployment_id=deployment.id)]
        match = {"prefect.resource.id": f"precis.model.{model}"}
        if flow == "check-data":
            yield AutomationCore(
                name=f"precis: new data for {model} -> {flow}/{deployment.name}",
                description="Counts the new rows once data have stopped arriving.",
                trigger=EventTrigger(
                    posture=Posture.Proactive,  # fires when no further arrival follows: a debounce
                    match=match,
                    after={"precis.data.arrived"},
                    expect={"precis.data.arrived"},
                    for_each={"prefect.resource.id"},  # without it, it fires with no arrival at all
                    threshold=1,
                    within=DEBOUNCE,
                ),
                actions=start,
            )
        else:
            yield AutomationCore(
                name=f"precis: decay of {model} -> {flow}/{deployment.name}",
                description="Retrains a champion that got worse on fresh data.",
                trigger=EventTrigger(
                    posture=Posture.Reactive,
                    match=match,
                    expect={"precis.champion.decayed"},
                    threshold=1,
                    within=timedelta(0),
                ),
                actions=start,
            )


def _notifications() -> Iterator[AutomationCore]:
    from prefect.blocks.webhook import Webhook

    for form, variable in WEBHOOKS.items():
        if not (url := os.environ.get(variable)):
            continue
        block = Webhook(url=url, headers={"Content-Type": "application/json"})
        block_id = block.save(f"precis-{form}", overwrite=True)
        yield AutomationCore(
            name=f"precis: verdicts to {form} webhook",
            description=f"Verdicts, with their reasons, and failures; the address is {variable}.",
            trigger=EventTrigger(
                posture=Posture.Reactive,
                match_related=OURS,
                expect={"precis.verdict", "prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
                threshold=1,
                within=timedelta(0),
            ),
            actions=[
                CallWebhook(block_document_id=block_id, payload=SLACK if form == "slack" else PLAIN)
            ],
        )


def _gpu_limit(client: SyncPrefectClient) -> None:
    """One GPU slot to begin with; a number that someone set stays."""
    try:
        client.read_global_concurrency_limit_by_name(GPU_LIMIT)
    except ObjectNotFound:
        with contextlib.suppress(ObjectAlreadyExists):  # another deploy has just made it
            client.create_global_concurrency_limit(
                GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=1)
            )
