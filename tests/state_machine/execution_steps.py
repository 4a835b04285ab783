"""Runs, cancellations and retries."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.state_machine.model import INPUT, Definition, Flow, Run
from tests.state_machine.steps import Steps, assert_error, assert_ok
from tests.state_machine.world import Caller

ENDED = {"success", "error", "timeout", "cancelled"}
RETRIES = st.tuples(st.sampled_from(["start", "failed"]), st.sampled_from(["same", "latest"]))


class ExecutionSteps(Steps):
    @precondition(lambda self: self.model.flows)
    @rule(data=st.data())
    def run_flow(self, data: st.DataObject) -> None:
        self._run(self.user, self._any(data, self.model.flows))

    @precondition(lambda self: self.model.running_flows())
    @rule(data=st.data())
    def run_flow_once(self, data: st.DataObject) -> None:
        """Two requests with one idempotency key, at the same time."""
        flow = self._any(data, self.model.running_flows())
        options = {"json": {"inputPayload": INPUT}, "headers": {"Idempotency-Key": self._unused_name()}}
        responses = self.user.together(*[("POST", f"{flow.path}/executions/run", options)] * 2)
        (run_id,) = {assert_ok(response, 201)["id"] for response in responses}
        assert sum("Idempotent-Replayed" in response.headers for response in responses) == 1
        self._accepted(flow, run_id)

    def _run(self, caller: Caller, flow: Flow) -> None:
        wait = "" if flow.status == "running" and flow.active is Definition.WAITS else "?wait=30"
        response = caller.post(f"{flow.path}/executions/run{wait}", json={"inputPayload": INPUT})
        if flow.status != "running":
            assert_error(response, 400, "flow_not_running")
            return
        body = assert_ok(response, 201)
        assert body["status"] == flow.active.outcome
        self._accepted(flow, body["id"])

    def _accepted(
        self,
        flow: Flow,
        id: str,
        *,
        version: int | None = None,
        trigger_id: str | None = None,
        retry_of: str | None = None,
    ) -> None:
        """Add the execution to the model when it has ended, if it ends by itself."""
        version = version or flow.active_version
        assert version is not None
        outcome = flow.versions[version - 1].outcome
        if outcome != "running":
            assert self.user.settled(f"{flow.path}/executions/{id}", ENDED) == outcome
        self.model.add_run(flow, Run(id, outcome, version, trigger_id, retry_of))

    @precondition(lambda self: self.model.runs())
    @rule(data=st.data(), times=st.sampled_from([1, 2]))
    def cancel(self, data: st.DataObject, times: int) -> None:
        self._cancel(*self._any(data, self.model.runs()), times)

    def _cancel(self, flow: Flow, run: Run, times: int) -> None:
        """Cancel the execution, several times at once."""
        path = f"{flow.path}/executions/{run.id}/cancel"
        for response in self.user.together(*[("POST", path, {})] * times):
            if run.status in ("success", "error"):
                assert_error(response, 400, "execution_ended")
            else:
                assert assert_ok(response, 200)["status"] == "cancelled"
        if run.status == "running":
            run.status = "cancelled"

    @precondition(lambda self: self.model.runs())
    @rule(data=st.data(), how=RETRIES)
    def retry(self, data: st.DataObject, how: tuple[str, str]) -> None:
        self._retry(*self._any(data, self.model.runs()), *how)

    def _retry(self, flow: Flow, run: Run, start: str, version: str) -> None:
        response = self.user.post(f"{flow.path}/executions/{run.id}/retry?from={start}&version={version}")
        if flow.status != "running":
            assert_error(response, 400, "flow_not_running")
        elif run.status == "running":
            assert_error(response, 400, "execution_running")
        elif start == "failed" and run.status == "success":
            assert_error(response, 400, "nothing_failed")
        else:
            number = run.version if version == "same" else len(flow.versions)
            self._accepted(flow, assert_ok(response, 201)["id"], version=number, retry_of=run.id)
