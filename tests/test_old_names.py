"""Names that were replaced by standard ones occur in the changelog, in decision records and in migrations only."""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HISTORY = ("CHANGELOG.md", "docs/decisions/", "migrations/versions/", "tests/test_old_names.py")

SYMBOLS = frozenset(
    """
    SWEEP_SECONDS DEAD_AFTER_SECONDS STUCK_AFTER_SECONDS DRAIN_SECONDS HEARTBEAT_SECONDS CALL_DEPTH
    EVENT_LOOP_TIMEOUT_SECONDS event_loop_timeout_seconds
    sweep_seconds dead_after_seconds stuck_after_seconds drain_seconds heartbeat_seconds
    bloxserver_executions_reconciled_total bloxserver_takeovers_total bloxserver_claim_size
    bloxserver_checkpoint_size bloxserver_dispatch_latency_seconds executor_id beat_at takeovers worked_ms
    failure_notices ix_executions_taken ix_executions_suspect reseal reseal_stale is_passing unless_passing
    one_by_one release_unknown release_dead forget_takeovers may_judge keep_lease lost_holds note_tokens
    switch_off leave_out_what_is_there settle_flow settle_flows read_unsettled_flows has_unsettled_flows
    note_failure read_due_notices claim_notice kept_step got_further end_stranded_sessions hand_over
    places_of_user free_places suspect_places sealer_of open_secrets read_sealed TakenExecution
    RunningExecution ExecutionWorld KeptConversation TakeOver PrunedElsewhere ClaimedElsewhere
    FailureNoticeRecord NoticeChannel FailureNotice DueNotice ClaimedNotice MeasuredPool CatchAll TooCostly
    Undecided Undelivered Unreadable Suspects Sealer MOST_TAKEOVERS MANY_TAKEOVERS MOST_TOGETHER MOST_OF_FLOW
    MOST_IN_ALL MOST_FAILURES LET_GO_SECONDS SURE_SECONDS SHOW_AFTER PACE_SECONDS PASSING_SIGNS
    """.split()  # noqa: SIM905
)
"""Searched in every file."""

IDENTIFIERS = frozenset(
    """
    Outside World Hold Journal Order Pauses Work Parked Bell Pulse Calls MOVES PATIENCE FRESH PUNCTUAL
    receivers
    """.split()  # noqa: SIM905
)
"""Names that are also English words. They are searched among the identifiers of the package only."""

MODULES = frozenset(
    """
    bell pulse patience passing waking settle suspects world journal endings notices takeover sessions
    readiness garbage scrape probes responses statements sealing handling
    """.split()  # noqa: SIM905
)


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.splitlines() if not name.startswith(HISTORY) and (ROOT / name).is_file()]


def text_of(name: str) -> str:
    try:
        return (ROOT / name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


@pytest.fixture(scope="module")
def files() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    return tracked_files()


def test_replaced_symbols_occur_in_no_file(files: list[str]) -> None:
    symbol = re.compile(rf"(?<![A-Za-z0-9_])({'|'.join(sorted(SYMBOLS))})(?![A-Za-z0-9_])")
    found = {name: sorted(set(symbol.findall(text_of(name)))) for name in files if not name.endswith(".lock")}
    assert {name: symbols for name, symbols in found.items() if symbols} == {}


def test_replaced_identifiers_occur_in_no_module(files: list[str]) -> None:
    found = {
        f"{name}: {token.string}"
        for name in files
        if name.startswith("bloxserver/") and name.endswith(".py")
        for token in tokenize.generate_tokens(io.StringIO(text_of(name)).readline)
        if token.type == tokenize.NAME and token.string in IDENTIFIERS
    }
    assert found == set()


def test_replaced_module_names_are_gone(files: list[str]) -> None:
    modules = [Path(name) for name in files if name.startswith("bloxserver/") and name.endswith(".py")]
    assert [str(module) for module in modules if module.stem in MODULES] == []
