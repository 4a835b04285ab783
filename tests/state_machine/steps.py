"""What the steps of all resources have in common."""

from __future__ import annotations

from typing import Any, TypeVar

import httpx
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine

from tests.state_machine.model import Flow, Model
from tests.state_machine.world import World

Choice = TypeVar("Choice")


def assert_error(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json().get("code")) == (status, code), response.text


def assert_ok(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    return response.json() if response.content else None


class Steps(RuleBasedStateMachine):
    """The calls of one user. In a step, `data` chooses among what exists."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.user = world.user()
        self.stranger = world.user()
        self.nobody = world.caller("")
        self.model = Model()
        self._names = 0
        self._steps = 0
        self._chosen: set[Flow] = set()
        """The flows that the current step chose."""

    def _unused_name(self) -> str:
        self._names += 1
        return f"Name {self._names}"

    def _any(self, data: st.DataObject, choices: list[Choice]) -> Choice:
        choice = data.draw(st.sampled_from(choices))
        flow = choice[0] if isinstance(choice, tuple) else choice
        if isinstance(flow, Flow):
            self._chosen.add(flow)
        return choice
