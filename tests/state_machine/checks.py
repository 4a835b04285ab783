"""Comparisons of the API's answers with the model. They are made after each step."""

from __future__ import annotations

from typing import Any

from tests.state_machine.model import Flow, Model, Webhook
from tests.state_machine.world import Caller

API = "/api/v1"
ALL = "page_size=1000"


def check_lists(user: Caller, model: Model) -> None:
    flows = _page(user, f"{API}/flows?{ALL}")
    assert {each["id"]: (each["name"], each["status"]) for each in flows} == {
        flow.id: (flow.name, flow.status) for flow in model.flows
    }
    executions = _page(user, f"{API}/executions?{ALL}")
    assert [(each["id"], each["flowId"], each["status"]) for each in executions] == [
        (run.id, flow.id, run.status) for flow, run in reversed(model.runs())
    ]
    keys = user.get(f"{API}/api-keys").json()
    assert [each["id"] for each in keys] == [key.id for key in reversed(model.keys)]


def check_usage(user: Caller, model: Model) -> None:
    usage = user.get(f"{API}/usage").json()
    assert usage["runsUsed"] == len(model.accepted)
    used = {limit["name"]: limit["used"] for limit in usage["limits"]}
    assert (used["flows"], used["api_keys"]) == (len(model.flows), len(model.keys))


def check_flow(user: Caller, flow: Flow) -> None:
    """The flow with its versions, webhooks, executions and statistics."""
    response = user.get(flow.path)
    body = response.json()
    assert response.headers["ETag"] == flow.tag
    assert (body["name"], body["status"], body["organismYaml"]) == (flow.name, flow.status, flow.versions[-1].text)
    assert (body["activeVersion"], body["latestVersion"]) == (flow.active_version, len(flow.versions))
    assert (body["errorMessage"] is None) == (not flow.has_error)
    triggers = user.get(f"{flow.path}/triggers").json()
    assert [
        (each["id"], each["webhookToken"], each["previousTokenExpiresAt"] is not None, each["enabled"])
        for each in triggers
    ] == [(webhook.id, webhook.token, webhook.previous_token is not None, webhook.enabled) for webhook in flow.webhooks]
    executions = _page(user, f"{flow.path}/executions?{ALL}")
    assert [(each["id"], each["status"]) for each in executions] == [
        (run.id, run.status) for run in reversed(flow.runs)
    ]
    check_statistics(user, flow)
    for run in flow.runs[-1:]:
        execution = user.get(f"{flow.path}/executions/{run.id}").json()
        assert (execution["triggerId"], execution["retryOf"]) == (run.trigger_id, run.retry_of)
        assert execution["flowVersion"] == run.version


def check_deliveries(user: Caller, flow: Flow, webhook: Webhook) -> None:
    deliveries = user.get(f"{flow.path}/triggers/{webhook.id}/deliveries").json()
    assert [(each["outcome"], each["executionId"], each["redeliveryOf"]) for each in deliveries] == [
        *reversed(webhook.deliveries)
    ]


def check_statistics(caller: Caller, flow: Flow) -> None:
    body = caller.get(f"{flow.path}/executions/stats").json()
    counted = {name.removeprefix("executions").lower(): body[name] for name in body if name.startswith("executions")}
    assert counted == flow.counts() | {"total": len(flow.runs)}
    assert (body["lastExecutedAt"] is None) == (not flow.runs)


def check_stranger(stranger: Caller, model: Model) -> None:
    """Nothing of the user exists for another user."""
    assert stranger.get(f"{API}/flows").json()["total"] == 0
    assert stranger.get(f"{API}/executions").json()["total"] == 0
    assert stranger.get(f"{API}/api-keys").json() == []
    for flow in model.flows:
        for path in paths_in(flow):
            assert stranger.get(path).status_code == 404, path
    for key in model.keys:
        assert stranger.delete(f"{API}/api-keys/{key.id}").status_code == 404


def paths_in(flow: Flow) -> list[str]:
    """The flow, its lists, and its newest webhook and execution."""
    paths = [flow.path, f"{flow.path}/triggers", f"{flow.path}/executions", f"{flow.path}/executions/stats"]
    paths += [f"{flow.path}/triggers/{webhook.id}" for webhook in flow.webhooks[-1:]]
    paths += [f"{flow.path}/executions/{run.id}" for run in flow.runs[-1:]]
    return paths


def check_revoked(nobody: Caller, model: Model, newest: int | None = None) -> None:
    """Old tokens and keys are rejected; with `newest`, only so many of each are sent."""
    for token in model.dead_tokens[-newest if newest else 0 :]:
        assert nobody.get(f"/webhooks/{token}/test").status_code == 404
        assert nobody.post(f"/webhooks/{token}").status_code == 404
    for key in model.revoked_keys[-newest if newest else 0 :]:
        response = nobody.world.caller(f"Bearer {key.secret}").get(f"{API}/flows")
        assert (response.status_code, response.json()["code"]) == (401, "invalid_api_key")


def _page(user: Caller, path: str) -> list[dict[str, Any]]:
    body = user.get(path).json()
    items: list[dict[str, Any]] = body["items"]
    assert (body["total"], body["hasMore"]) == (len(items), False)
    return items
