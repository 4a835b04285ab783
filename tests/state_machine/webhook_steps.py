"""Webhooks, their tokens, their deliveries and redelivery."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.state_machine import checks
from tests.state_machine.execution_steps import ExecutionSteps
from tests.state_machine.model import INPUT, Delivery, Flow, Webhook
from tests.state_machine.steps import assert_error, assert_ok
from tests.state_machine.world import LIMITS


class WebhookSteps(ExecutionSteps):
    @precondition(lambda self: any(len(flow.webhooks) < LIMITS["triggers_per_flow"] for flow in self.model.flows))
    @rule(data=st.data())
    def create_webhook(self, data: st.DataObject) -> None:
        self._create_webhook(self._any(data, self.model.flows))

    def _create_webhook(self, flow: Flow) -> None:
        body = {"type": "webhook", "name": self._unused_name(), "config": {}}
        response = self.user.post(f"{flow.path}/triggers", json=body)
        if len(flow.webhooks) == LIMITS["triggers_per_flow"]:
            assert_error(response, 403, "triggers_per_flow_limit_reached")
            return
        created = assert_ok(response, 201)
        flow.webhooks.append(Webhook(created["id"], created["webhookToken"]))

    @precondition(lambda self: self.model.webhooks())
    @rule(data=st.data(), enabled=st.booleans())
    def enable_or_disable_webhook(self, data: st.DataObject, enabled: bool) -> None:
        flow, webhook = self._any(data, self.model.webhooks())
        assert_ok(self.user.patch(f"{flow.path}/triggers/{webhook.id}", {"enabled": enabled}), 200)
        webhook.enabled = enabled
        self._send_webhook(flow, webhook, webhook.token)

    @precondition(lambda self: self.model.webhooks())
    @rule(data=st.data(), grace=st.sampled_from([0, 3600]))
    def regenerate_token(self, data: st.DataObject, grace: int) -> None:
        flow, webhook = self._any(data, self.model.webhooks())
        response = self.user.post(f"{flow.path}/triggers/{webhook.id}/regenerate-token?grace_seconds={grace}")
        self.model.dead_tokens += webhook.tokens[0 if grace == 0 else 1 :]
        webhook.previous_token = webhook.token if grace else None
        webhook.token = assert_ok(response, 200)["webhookToken"]
        for token in webhook.tokens:
            self._send_webhook(flow, webhook, token)

    @precondition(lambda self: self.model.webhooks())
    @rule(data=st.data())
    def regenerate_token_twice(self, data: st.DataObject) -> None:
        """At the same time: only one of the new tokens is valid."""
        flow, webhook = self._any(data, self.model.webhooks())
        path = f"{flow.path}/triggers/{webhook.id}"
        responses = self.user.together(*[("POST", f"{path}/regenerate-token", {})] * 2)
        tokens = {assert_ok(response, 200)["webhookToken"] for response in responses}
        valid = self.user.get(path).json()["webhookToken"]
        assert len(tokens) == 2
        assert valid in tokens
        self.model.dead_tokens += [*webhook.tokens, *(tokens - {valid})]
        webhook.token, webhook.previous_token = valid, None
        self._send_webhook(flow, webhook, valid)

    @precondition(lambda self: self.model.webhooks())
    @rule(data=st.data())
    def delete_webhook(self, data: st.DataObject) -> None:
        flow, webhook = self._any(data, self.model.webhooks())
        path = f"{flow.path}/triggers/{webhook.id}"
        assert_ok(self.user.delete(path), 204)
        self.model.delete_webhook(flow, webhook)
        assert_error(self.user.get(path), 404, "trigger_not_found")

    @precondition(lambda self: self.model.webhooks())
    @rule(data=st.data(), key=st.sampled_from([None, "one", "two"]))
    def send_webhook(self, data: st.DataObject, key: str | None) -> None:
        flow, webhook = self._any(data, self.model.webhooks())
        token = data.draw(st.integers(0, len(webhook.tokens) - 1), "token")
        self._send_webhook(flow, webhook, webhook.tokens[token], key)

    def _send_webhook(self, flow: Flow, webhook: Webhook, token: str, key: str | None = None) -> None:
        headers = {} if key is None else {"Idempotency-Key": key}
        response = self.nobody.post(f"/webhooks/{token}", headers, content=INPUT)
        if key is not None and key in webhook.used_keys:
            first = webhook.used_keys[key]
            assert assert_ok(response, 200)["executionId"] == first
            assert "Idempotent-Replayed" in response.headers
            webhook.deliveries.append(Delivery("repeated", first))
        elif flow.status != "running":
            assert_error(response, 400, "flow_not_running")
            webhook.deliveries.append(Delivery("rejected", None))
        elif not webhook.enabled:
            assert_error(response, 409, "trigger_disabled")
            webhook.deliveries.append(Delivery("rejected", None))
        else:
            run_id = assert_ok(response, 200)["executionId"]
            self._accepted(flow, run_id, trigger_id=webhook.id)
            webhook.deliveries.append(Delivery("accepted", run_id))
            if key is not None:
                webhook.used_keys[key] = run_id
        checks.check_deliveries(self.user, flow, webhook)

    @precondition(lambda self: any(webhook.deliveries for _, webhook in self.model.webhooks()))
    @rule(data=st.data())
    def redeliver(self, data: st.DataObject) -> None:
        delivered = [(flow, webhook) for flow, webhook in self.model.webhooks() if webhook.deliveries]
        flow, webhook = self._any(data, delivered)
        number = data.draw(st.integers(0, len(webhook.deliveries) - 1), "delivery")
        delivery = webhook.deliveries[number]
        path = f"{flow.path}/triggers/{webhook.id}/deliveries"
        id = self.user.get(path).json()[-1 - number]["id"]
        response = self.user.post(f"{path}/{id}/redeliver")
        if delivery.run_id is None:
            assert_error(response, 409, "delivery_rejected")
        elif flow.status != "running":
            assert_error(response, 400, "flow_not_running")
        elif not webhook.enabled:
            assert_error(response, 409, "trigger_disabled")
        else:
            run_id = assert_ok(response, 201)["id"]
            self._accepted(flow, run_id, trigger_id=webhook.id, retry_of=delivery.run_id)
            webhook.deliveries.append(Delivery("accepted", run_id, delivery.run_id))
        checks.check_deliveries(self.user, flow, webhook)
