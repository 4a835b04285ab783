"""The order in which tasks of several tenants run."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from bloxserver.fair_queue import FairQueue


class Clock:
    """A clock that a test sets."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def queue_of(slots: int, *tasks: str, share: int = 10, clock: Clock | None = None) -> FairQueue[str]:
    """A queue with tasks whose first letter names the tenant."""
    queue: FairQueue[str] = FairQueue(slots, clock or Clock())
    for task in tasks:
        queue.put(task[0], task, share)
    return queue


def take_all(queue: FairQueue[str]) -> list[str]:
    """Take tasks while some may run. None of them ends."""
    taken = []
    while (next_task := queue.take()) is not None:
        taken.append(next_task[1])
    return taken


def test_tasks_of_a_tenant_run_in_their_order() -> None:
    assert take_all(queue_of(5, "a1", "a2", "a3")) == ["a1", "a2", "a3"]


def test_tenants_take_turns() -> None:
    queue = queue_of(2, "a1", "a2", "a3", "b1", "b2", "c1")
    order = []
    while (taken := queue.take()) is not None:
        order.append(taken[1])
        queue.done(taken[0])
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]


def run_all(queue: FairQueue[str], clock: Clock, seconds: Mapping[str, float]) -> list[str]:
    """Run all tasks. Those of a tenant take that many seconds each."""
    order = []
    while (taken := queue.take()) is not None:
        order.append(taken[1])
        clock.seconds += seconds[str(taken[0])]
        queue.done(taken[0])
    return order


def test_tenants_share_the_time() -> None:
    queue = queue_of(1, "a1", "a2", "a3", *(f"b{number}" for number in range(9)), clock=(clock := Clock()))
    order = run_all(queue, clock, {"a": 0.04, "b": 0.01})
    assert order[:8] == ["a1", "b0", "b1", "a2", "b2", "b3", "b4", "a3"]


def test_short_task_of_a_new_tenant_runs_before_waiting_long_ones() -> None:
    queue = queue_of(1, *(f"{tenant}{number}" for number in range(3) for tenant in "ab"), clock=(clock := Clock()))
    assert queue.take() == ("a", "a0")
    clock.seconds += 5
    queue.put("c", "c0", 1)
    queue.done("a")
    assert queue.take() == ("b", "b0")
    clock.seconds += 5
    queue.done("b")
    assert queue.take() == ("c", "c0")
    queue.done("c")
    for number in range(1, 4):
        queue.put("c", f"c{number}", 1)
        assert queue.take() == ("c", f"c{number}")
        clock.seconds += 0.01
        queue.done("c")


def test_tenant_does_not_save_up_time() -> None:
    queue = queue_of(1, *(f"a{number}" for number in range(100)), clock=(clock := Clock()))
    for _ in range(50):
        queue.take()
        clock.seconds += 1
        queue.done("a")
    assert queue.take() == ("a", "a50")
    for number in range(9):
        queue.put("b", f"b{number}", 1)
    clock.seconds += 1
    queue.done("a")
    assert run_all(queue, clock, {"a": 1, "b": 1})[:5] == ["b0", "a51", "b1", "a52", "b2"]


def test_long_tasks_are_not_delayed_forever_by_new_tenants() -> None:
    queue = queue_of(1, "a1", "a2", clock=(clock := Clock()))
    assert queue.take() == ("a", "a1")
    clock.seconds += 10
    queue.done("a")
    for number in range(1000):
        queue.put(number, f"new {number}", 1)
        taken = queue.take()
        assert taken is not None
        if taken[0] == "a":
            break
        clock.seconds += 0.1
        queue.done(taken[0])
    else:
        pytest.fail("the task waited for all others")


def test_idle_tenants_are_forgotten() -> None:
    queue = queue_of(1, clock=(clock := Clock()))
    for number in range(1000):
        queue.put(number, "task", 1)
        queue.take()
        clock.seconds += 0.01
        queue.done(number)
    assert len(queue._used) < 200


def test_tenant_with_the_fewest_running_tasks_is_next() -> None:
    queue = queue_of(9, "a1", "a2", "a3")
    assert take_all(queue) == ["a1", "a2", "a3"]
    for task in ("a4", "b1", "b2", "b3", "b4"):
        queue.put(task[0], task, 10)
    assert [queue.take() for _ in range(4)] == [("b", "b1"), ("b", "b2"), ("b", "b3"), ("a", "a4")]


def test_tenant_has_at_most_its_share() -> None:
    queue = queue_of(9, *(f"a{number}" for number in range(5)), share=2)
    assert take_all(queue) == ["a0", "a1"]
    queue.done("a")
    assert take_all(queue) == ["a2"]


def test_tenant_with_no_share_has_one_process() -> None:
    assert take_all(queue_of(9, "a1", "a2", share=0)) == ["a1"]


def test_last_free_process_is_left_for_tenants_without_a_running_task() -> None:
    queue = queue_of(4, *(f"{tenant}{number}" for number in range(10) for tenant in "ab"))
    assert take_all(queue) == ["a0", "b0", "a1"]
    queue.put("c", "c1", 10)
    assert take_all(queue) == ["c1"]


def test_no_task_is_taken_beyond_the_processes() -> None:
    queue = queue_of(2, "a1", "b1", "c1")
    assert take_all(queue) == ["a1", "b1"]
    queue.done("a")
    assert take_all(queue) == ["c1"]


def test_waiting_tasks_are_counted_per_tenant() -> None:
    queue = queue_of(9, "a1", "a2", "b1")
    assert (len(queue), queue.waiting("a"), queue.waiting("b"), queue.waiting("c")) == (3, 2, 1, 0)
    queue.take()
    assert (len(queue), queue.waiting("a")) == (2, 1)


def test_removed_task_is_not_taken() -> None:
    queue = queue_of(9, "a1", "a2", "b1")
    assert queue.remove("a", "a2")
    assert queue.remove("b", "b1")
    assert (len(queue), take_all(queue)) == (1, ["a1"])


def test_only_waiting_tasks_can_be_removed() -> None:
    queue = queue_of(9, "a1")
    queue.take()
    assert not queue.remove("a", "a1")
    assert not queue.remove("b", "b1")
    assert len(queue) == 0
