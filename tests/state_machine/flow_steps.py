"""Creating, changing, starting, stopping and deleting flows."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.state_machine.checks import API
from tests.state_machine.execution_steps import RETRIES, ExecutionSteps
from tests.state_machine.model import Definition, Flow
from tests.state_machine.steps import assert_error, assert_ok
from tests.state_machine.world import LIMITS, Caller


class FlowSteps(ExecutionSteps):
    @precondition(lambda self: len(self.model.flows) < LIMITS["flows"])
    @rule(amount=st.integers(1, 4))
    def create_flows(self, amount: int) -> None:
        """Create flows at the same time, also beyond the limit."""
        names = [self._unused_name() for _ in range(amount)]
        room = LIMITS["flows"] - len(self.model.flows)
        responses = self.user.together(*(("POST", f"{API}/flows", {"json": {"name": name}}) for name in names))
        created = [response for response in responses if response.status_code == 201]
        assert len(created) == min(amount, room)
        for response in created:
            body = response.json()
            self.model.flows.append(Flow(body["id"], body["name"], [response.headers["ETag"]]))
        for response in responses:
            if response not in created:
                assert_error(response, 403, "flow_limit_reached")

    @precondition(lambda self: self.model.flows)
    @rule(data=st.data(), definition=st.none() | st.sampled_from(Definition))
    def change_flow(self, data: st.DataObject, definition: Definition | None) -> None:
        flow = self._any(data, self.model.flows)
        tag = data.draw(st.none() | st.sampled_from(flow.tags), "If-Match")
        self._change(self.user, flow, definition, tag)

    def _change(self, caller: Caller, flow: Flow, definition: Definition | None, tag: str | None = None) -> None:
        name = self._unused_name()
        changes = {"name": name} | ({"organismYaml": definition.text} if definition else {})
        response = caller.patch(flow.path, changes, {"If-Match": tag} if tag else {})
        if tag not in (None, flow.tag):
            assert_error(response, 412, "flow_changed")
            assert response.json()["details"]["etag"] == flow.tag
            return
        assert_ok(response, 200)
        flow.name = name
        flow.tags.append(response.headers["ETag"])
        if definition:
            flow.define(definition)

    @precondition(lambda self: self.model.running_flows())
    @rule(data=st.data(), cancels=st.booleans(), definition=st.none() | st.sampled_from(Definition), how=RETRIES)
    def run_and_retry(
        self, data: st.DataObject, cancels: bool, definition: Definition | None, how: tuple[str, str]
    ) -> None:
        """Retry an execution, also one that was cancelled, and of a flow with another definition."""
        flow = self._any(data, self.model.running_flows())
        self._run(self.user, flow)
        run = flow.runs[-1]
        if cancels:
            self._cancel(flow, run, times=1)
        self._change(self.user, flow, definition)
        self._retry(flow, run, *how)

    @precondition(lambda self: self.model.flows)
    @rule(data=st.data())
    def restore_version(self, data: st.DataObject) -> None:
        flow = self._any(data, self.model.flows)
        number = data.draw(st.integers(1, len(flow.versions)), "version")
        response = self.user.post(f"{flow.path}/versions/{number}/restore")
        assert_ok(response, 200)
        flow.define(flow.versions[number - 1])
        flow.tags.append(response.headers["ETag"])

    @precondition(lambda self: self.model.flows)
    @rule(data=st.data())
    def start_flow(self, data: st.DataObject) -> None:
        flow = self._any(data, self.model.flows)
        self._start(flow)
        self._run(self.user, flow)

    def _start(self, flow: Flow) -> None:
        response = self.user.post(f"{flow.path}/start")
        if flow.status == "running":
            assert_error(response, 400, "flow_wrong_state")
            return
        assert assert_ok(response, 200)["status"] == "starting"
        flow.status = self.user.settled(flow.path, {"running", "error"})
        assert (flow.status == "error") == (flow.versions[-1] is Definition.INVALID)
        flow.has_error = flow.status == "error"
        if flow.status == "running":
            flow.active_version = len(flow.versions)

    @precondition(lambda self: self.model.flows)
    @rule(data=st.data())
    def stop_flow(self, data: st.DataObject) -> None:
        flow = self._any(data, self.model.flows)
        response = self.user.post(f"{flow.path}/stop")
        if flow.status == "stopped":
            assert_error(response, 400, "flow_wrong_state")
            return
        assert assert_ok(response, 200)["status"] == "stopping"
        flow.status = self.user.settled(flow.path, {"stopped"})
        for run in flow.runs:
            if run.status == "running":
                run.status = "cancelled"
        self._run(self.user, flow)

    @precondition(lambda self: len(self.model.flows) > 1)
    @rule(data=st.data())
    def delete_flow(self, data: st.DataObject) -> None:
        """The last flow is deleted at the end of the example: most steps need one."""
        self._delete(self._any(data, self.model.flows))

    def _delete(self, flow: Flow) -> None:
        assert_ok(self.user.delete(flow.path), 204)
        self.model.delete_flow(flow)
        assert_error(self.user.get(flow.path), 404, "flow_not_found")
        assert_error(self.user.delete(flow.path), 404, "flow_not_found")
