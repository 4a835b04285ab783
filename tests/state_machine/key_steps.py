"""API keys, their scopes and their restrictions to flows."""

from __future__ import annotations

import httpx
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.state_machine import checks
from tests.state_machine.checks import API
from tests.state_machine.flow_steps import FlowSteps
from tests.state_machine.model import Flow, Key
from tests.state_machine.steps import assert_error, assert_ok
from tests.state_machine.world import LIMITS, Caller

SCOPES = ["read", "write", "run", "admin"]
USES = st.sampled_from(["read", "write", "run"])


class KeySteps(FlowSteps):
    @precondition(lambda self: self.model.flows and len(self.model.keys) < LIMITS["api_keys"])
    @rule(data=st.data(), scopes=st.sets(st.sampled_from(SCOPES), min_size=1), restricted=st.booleans())
    def create_and_use_key(self, data: st.DataObject, scopes: set[str], restricted: bool) -> None:
        flow_ids = [self._any(data, self.model.flows).id] if restricted else None
        body = {"name": self._unused_name(), "scopes": sorted(scopes), "flowIds": flow_ids}
        created = assert_ok(self.user.post(f"{API}/api-keys", json=body), 201)
        restriction = None if flow_ids is None else frozenset(flow_ids)
        key = Key(created["id"], created["key"], frozenset(scopes), restriction)
        self.model.keys.append(key)
        if len(self.model.keys) == LIMITS["api_keys"]:
            assert_error(self.user.post(f"{API}/api-keys", json=body), 403, "api_keys_limit_reached")
        if "read" in scopes:
            self._list_flows(key)
        self._use_key(key, self._any(data, self.model.flows), data.draw(USES, "use"))

    @precondition(lambda self: self.model.keys and self.model.flows)
    @rule(data=st.data(), scope=USES)
    def use_key(self, data: st.DataObject, scope: str) -> None:
        self._use_key(self._any(data, self.model.keys), self._any(data, self.model.flows), scope)

    def _use_key(self, key: Key, flow: Flow, scope: str) -> None:
        caller = self.world.caller(f"Bearer {key.secret}")
        if scope not in key.scopes:
            assert_error(self._use(caller, flow, scope), 403, "missing_scope")
        elif not key.reaches(flow):
            assert_error(self._use(caller, flow, scope), 404, "flow_not_found")
        elif scope == "read":
            self._list_flows(key)
            checks.check_statistics(caller, flow)
        elif scope == "write":
            self._change(caller, flow, None)
        else:
            self._run(caller, flow)

    def _list_flows(self, key: Key) -> None:
        """The list has the flows that the key reaches."""
        body = assert_ok(self.world.caller(f"Bearer {key.secret}").get(f"{API}/flows"), 200)
        assert {each["id"] for each in body["items"]} == {each.id for each in self.model.flows if key.reaches(each)}

    @staticmethod
    def _use(caller: Caller, flow: Flow, scope: str) -> httpx.Response:
        """A request that needs the scope."""
        if scope == "read":
            return caller.get(flow.path)
        if scope == "write":
            return caller.patch(flow.path, {"name": "x"})
        return caller.post(f"{flow.path}/executions/run")

    @precondition(lambda self: self.model.keys)
    @rule(data=st.data())
    def revoke_key(self, data: st.DataObject) -> None:
        key = self._any(data, self.model.keys)
        assert_ok(self.user.delete(f"{API}/api-keys/{key.id}"), 204)
        self.model.keys.remove(key)
        self.model.revoked_keys.append(key)
        assert_error(self.user.delete(f"{API}/api-keys/{key.id}"), 404, "api_key_not_found")
