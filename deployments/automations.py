"""Prefect automations and limits that the deployments need; installing them twice changes nothing.

- zombies: a run whose heartbeats stop becomes Crashed, so that it can be retried
- new data: once arrivals for a model pause, the cheap check that counts new rows is started
- decay: when a champion has decayed, a retrain is started
- notifications: verdicts, questions for approval, failures and changes of the champion go to a webhook, if
  one is set, in Slack's format or plain

Prefect recreates the `triggers:` of a prefect.yaml at each deploy, and a running debounce is lost; these
automations are compared, and left alone if they are the same.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.events.actions import CallWebhook, ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError

# Other teams' flows may have the same names; ours are recognized by a tag.
OURS = {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.precis"}
PAGE = 200
# Four heartbeats of 30 seconds; one or two may be late on a busy server.
HEARTBEAT_WINDOW = timedelta(seconds=120)
# Uploads come in bursts; the check starts when none has come for this long.
DEBOUNCE = timedelta(seconds=float(os.environ.get("PRECIS_DEBOUNCE_SECONDS", "60")))
GPU_LIMIT = "precis-gpu"
WEBHOOKS = {"slack": "PRECIS_SLACK_WEBHOOK", "plain": "PRECIS_WEBHOOK"}

LINE = (
    "{% if event.event in ['precis.verdict', 'precis.approval.asked', 'precis.champion.changed'] %}"
    "{{ event.payload.headline }}"
    "{% for reason in event.payload.reasons or [] %}\n- {{ reason }}{% endfor %}"
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
        automations = [_zombies(), *_by_deployment(client), *_notifications()]
        for automation in automations:
            _put(client, automation)
        for other in _all(client.read_automations):
            if other.name.startswith("precis: ") and other.name not in {
                a.name for a in automations
            }:
                if other.name.startswith(("precis: verdicts", "precis: champion changes")):
                    continue  # from a deploy with the webhook set; it stays until someone removes it
                _delete(client, other.id)
        return [automation.name for automation in automations]


def _all(read: Callable[..., list[Any]]) -> list[Any]:
    """The items of all pages."""
    items: list[Any] = []
    while len(page := read(limit=PAGE, offset=len(items))) == PAGE:
        items += page
    return [*items, *page]


def _put(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Create an automation, or update the one of that name if it differs."""
    existing = client.read_automations_by_name(automation.name)
    if not existing:
        client.create_automation(automation)
        _keep_one(client, automation.name)
        return
    if len(existing) > 1:
        _keep_one(client, automation.name)
        existing.sort(key=lambda a: str(a.id))
    # Someone may have disabled it: it stays disabled.
    automation = automation.model_copy(update={"enabled": existing[0].enabled})
    if _content(existing[0]) != _content(automation):
        # The server refuses an update that contains the owner.
        values = automation.model_dump(exclude={"owner_resource"})
        client.update_automation(existing[0].id, AutomationCore(**values))


def _keep_one(client: SyncPrefectClient, name: str) -> None:
    """Delete all automations of a name but the first: names are not unique on the server.

    Of deploys that run at once, each calls this after it has created its own, and all keep the same one.
    """
    for other in sorted(client.read_automations_by_name(name), key=lambda a: str(a.id))[1:]:
        _delete(client, other.id)


def _delete(client: SyncPrefectClient, automation_id: UUID) -> None:
    """Delete an automation; another deploy may have just done so."""
    try:
        client.delete_automation(automation_id)
    except PrefectHTTPStatusError as error:  # Prefect 3.8.8 means to return on 404, and raises
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise


def _content(automation: AutomationCore) -> dict[str, Any]:
    content = automation.model_dump(mode="json", include={"description", "trigger", "actions"})
    for names in ("after", "expect", "for_each"):  # sets, which each process lists in its own order
        content["trigger"][names] = sorted(content["trigger"][names])
    return content


def _zombies() -> AutomationCore:
    return AutomationCore(
        name="precis: zombies",
        description="A run whose heartbeats stop becomes Crashed; retry it from the UI.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=OURS,
            after={"prefect.flow-run.heartbeat"},
            # Any event of the run shows that it lives: verdicts are state names, and so events too.
            expect={"prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            threshold=1,
            within=HEARTBEAT_WINDOW,
        ),
        actions=[
            ChangeFlowRunState(
                state="CRASHED",
                message=f"no heartbeat for {HEARTBEAT_WINDOW.total_seconds():.0f} seconds: the "
                "process or its machine is gone; a retry continues where it stopped",
            )
        ],
    )


def _by_deployment(client: SyncPrefectClient) -> Iterator[AutomationCore]:
    """Two automations for each model: on new data and on decay."""
    for deployment in _all(client.read_deployments):
        flow = client.read_flow(deployment.flow_id).name
        recipe = deployment.parameters.get("recipe")
        if "precis" not in deployment.tags or flow not in ("check-data", "retrain"):
            continue
        if isinstance(recipe, dict) and "name" in recipe:
            automation = _new_data if flow == "check-data" else _decay
            yield automation(recipe["name"], f"{flow}/{deployment.name}", deployment.id)


def _new_data(model: str, deployment: str, deployment_id: UUID) -> AutomationCore:
    return AutomationCore(
        name=f"precis: new data for {model} -> {deployment}",
        description="Counts the new rows once data have stopped arriving.",
        trigger=EventTrigger(
            posture=Posture.Proactive,  # a debounce: it fires when no arrival follows
            match={"prefect.resource.id": f"precis.model.{model}"},
            after={"precis.data.arrived"},
            expect={"precis.data.arrived"},
            for_each={"prefect.resource.id"},  # without it, it would fire without any arrival
            threshold=1,
            within=DEBOUNCE,
        ),
        actions=[RunDeployment(deployment_id=deployment_id)],
    )


def _decay(model: str, deployment: str, deployment_id: UUID) -> AutomationCore:
    return AutomationCore(
        name=f"precis: decay of {model} -> {deployment}",
        description="Retrains a champion that got worse on fresh data.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            match={"prefect.resource.id": f"precis.model.{model}"},
            expect={"precis.champion.decayed"},
            threshold=1,
            within=timedelta(0),
        ),
        actions=[RunDeployment(deployment_id=deployment_id)],
    )


def _notifications() -> Iterator[AutomationCore]:
    from prefect.blocks.webhook import Webhook

    for form, variable in WEBHOOKS.items():
        if not (url := os.environ.get(variable)):
            continue
        block = Webhook(url=url, headers={"Content-Type": "application/json"})
        block_id = block.save(f"precis-{form}", overwrite=True)
        call = CallWebhook(block_document_id=block_id, payload=SLACK if form == "slack" else PLAIN)
        yield AutomationCore(
            name=f"precis: verdicts to {form} webhook",
            description="Verdicts, with their reasons, questions for approval, and failures; the address is "
            f"{variable}.",
            trigger=EventTrigger(
                posture=Posture.Reactive,
                match_related=OURS,
                expect={
                    "precis.verdict",
                    "precis.approval.asked",
                    "prefect.flow-run.Failed",
                    "prefect.flow-run.Crashed",
                },
                threshold=1,
                within=timedelta(0),
            ),
            actions=[call],
        )
        yield AutomationCore(
            name=f"precis: champion changes to {form} webhook",
            description="Promotions, rollbacks, and moves of the alias by hand once they are seen; the "
            f"address is {variable}.",
            trigger=EventTrigger(
                posture=Posture.Reactive,
                match={"prefect.resource.id": "precis.model.*"},
                expect={"precis.champion.changed"},
                threshold=1,
                within=timedelta(0),
            ),
            actions=[call],
        )


def _gpu_limit(client: SyncPrefectClient) -> None:
    """Create the GPU limit with one slot, unless it exists with the number that someone has set."""
    try:
        client.read_global_concurrency_limit_by_name(GPU_LIMIT)
    except ObjectNotFound:
        with contextlib.suppress(ObjectAlreadyExists):  # another deploy has just made it
            client.create_global_concurrency_limit(
                GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=1)
            )
