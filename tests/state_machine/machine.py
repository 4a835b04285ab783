"""The state machine: all steps, how an example begins, and what holds after each step."""

from __future__ import annotations

import sys

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from tests.state_machine import checks
from tests.state_machine.key_steps import KeySteps
from tests.state_machine.model import Definition
from tests.state_machine.webhook_steps import WebhookSteps


class ApiMachine(WebhookSteps, KeySteps):
    @initialize(definition=st.sampled_from([Definition.GREETS, Definition.FAILS, Definition.WAITS]))
    def begin_with_two_flows(self, definition: Definition) -> None:
        """Most steps need one. A key that is restricted to a flow needs another one."""
        self.create_flows(2)
        flow = self.model.flows[0]
        self._change(self.user, flow, definition)
        self._start(flow)
        self._create_webhook(flow)

    @invariant()
    def lists_and_statistics_equal_the_model(self) -> None:
        checks.check_lists(self.user, self.model)
        checks.check_usage(self.user, self.model)
        checks.check_revoked(self.nobody, self.model, newest=1)
        self._steps += 1
        for flow in self._chosen & {*self.model.flows}:
            checks.check_flow(self.user, flow)
            paths = checks.paths_in(flow)
            assert self.stranger.get(paths[self._steps % len(paths)]).status_code == 404
        self._chosen.clear()

    def teardown(self) -> None:
        """Check also what the last steps did not choose, and what is left when all flows are deleted."""
        if sys.exc_info()[0] is not None:
            return  # a step failed, and the model may be wrong
        for flow in self.model.flows:
            checks.check_flow(self.user, flow)
            for webhook in flow.webhooks:
                checks.check_deliveries(self.user, flow, webhook)
        checks.check_stranger(self.stranger, self.model)
        for flow in [*self.model.flows]:
            self._delete(flow)
        checks.check_revoked(self.nobody, self.model)
        checks.check_lists(self.user, self.model)
        checks.check_usage(self.user, self.model)
