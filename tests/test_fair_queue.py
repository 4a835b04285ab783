"""The order in which tasks of several tenants run."""

from __future__ import annotations

from bloxserver.fair_queue import FairQueue


def queue_of(slots: int, *tasks: str, share: int = 10) -> FairQueue[str]:
    """A queue with tasks whose first letter names the tenant."""
    queue: FairQueue[str] = FairQueue(slots)
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
