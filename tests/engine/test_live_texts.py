"""The texts of agents while they are written, and those who watch them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import uuid4

import pytest

from bloxserver.engine import live_texts
from bloxserver.engine.live_texts import MAX_CHARACTERS, PART_CHARACTERS, AgentText, LiveTexts
from bloxserver.models.execution_changes import change_key

BEGINNING = AgentText(uuid4(), uuid4(), "a", 1, 1, 0, "")
KEYS = frozenset([change_key(BEGINNING.execution_id)])


class Heard:
    """The parts of texts that an audience has received."""

    def __init__(self, texts: LiveTexts) -> None:
        self.parts: list[AgentText] = []
        self._came = asyncio.Event()
        self.audience = texts.audience(self._hear)

    def _hear(self, part: AgentText) -> None:
        self.parts.append(part)
        self._came.set()

    @property
    def texts(self) -> list[tuple[int, str]]:
        return [(part.offset, part.text) for part in self.parts]

    async def until(self, is_reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not is_reached():
                self._came.clear()
                await self._came.wait()


async def test_text_is_sent_to_those_who_watch() -> None:
    texts = LiveTexts()
    here, elsewhere = Heard(texts), Heard(texts)
    here.audience.watch(KEYS, is_new=True)
    with texts.written(BEGINNING) as text:
        text.add("I ")
        await here.until(lambda: here.texts == [(0, "I ")])
        text.add("do")
        text.add(".")
    assert here.texts == [(0, "I "), (2, "do.")], "the rest is sent at the end"
    assert elsewhere.parts == []


async def test_deltas_within_the_interval_are_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_texts, "INTERVAL_SECONDS", 0.2)
    texts = LiveTexts()
    heard = Heard(texts)
    heard.audience.watch(KEYS, is_new=True)
    with texts.written(BEGINNING) as text:
        text.add("0")
        await heard.until(lambda: len(heard.parts) == 1)
        for _ in range(50):
            text.add("1")
        await heard.until(lambda: len(heard.parts) == 2)
    assert heard.texts == [(0, "0"), (1, "1" * 50)]


async def test_late_watcher_gets_the_text_so_far() -> None:
    texts = LiveTexts()
    heard = Heard(texts)
    with texts.written(BEGINNING) as text:
        text.add("I ")
        text.add("do. ")
        heard.audience.watch(KEYS, is_new=True)
        await heard.until(lambda: heard.texts == [(0, "I do. ")])
        text.add("Yes.")
    assert heard.texts == [(0, "I do. "), (6, "Yes.")]


async def test_announcement_of_a_known_watcher_repeats_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_texts, "REPEAT_SECONDS", 0.0)
    texts = LiveTexts()
    heard = Heard(texts)
    heard.audience.watch(KEYS, is_new=False)
    with texts.written(BEGINNING) as text:
        text.add("I ")
        await heard.until(lambda: heard.texts == [(0, "I ")])
        heard.audience.watch(KEYS, is_new=False)
        text.add("do.")
        await heard.until(lambda: heard.texts == [(0, "I "), (2, "do.")])
        heard.audience.watch(KEYS, is_new=True)
    assert heard.texts[2:] == [(0, "I do.")]


async def test_repetitions_have_a_minimum_interval() -> None:
    texts = LiveTexts()
    heard = Heard(texts)
    with texts.written(BEGINNING) as text:
        text.add("I ")
        heard.audience.watch(KEYS, is_new=True)
        await heard.until(lambda: bool(heard.parts))
        heard.audience.watch(KEYS, is_new=True)
        text.add("do.")
        await heard.until(lambda: len(heard.parts) == 2)
        assert heard.texts == [(0, "I "), (2, "do.")]
    assert heard.texts[2:] == [(0, "I do.")], "at the end at the latest"


async def test_nothing_is_sent_after_the_watchers_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_texts, "WATCHED_SECONDS", 0.0)
    texts = LiveTexts()
    heard = Heard(texts)
    heard.audience.watch(KEYS, is_new=True)
    with texts.written(BEGINNING) as text:
        text.add("I do.")
    assert heard.parts == []


async def test_long_answer_is_sent_in_parts_up_to_a_maximum() -> None:
    texts = LiveTexts()
    heard = Heard(texts)
    heard.audience.watch(KEYS, is_new=True)
    with texts.written(BEGINNING) as text:
        for _ in range(3):
            text.add("\u2028" * (MAX_CHARACTERS // 2))
    assert sum(len(part.text) for part in heard.parts) == MAX_CHARACTERS
    assert max(len(part.text) for part in heard.parts) == PART_CHARACTERS


@pytest.mark.parametrize("character", ["\0", "\x01", '"', "\\", "\u2028", "\U0001f600", "\ud800"])
async def test_part_fits_into_a_message_of_the_database(character: str) -> None:
    texts = LiveTexts()
    heard = Heard(texts)
    heard.audience.watch(KEYS, is_new=True)
    with texts.written(AgentText(uuid4(), uuid4(), "l" * 64, 10_000, 100, 0, "")) as other:
        other.add("unwatched")
    with texts.written(BEGINNING) as text:
        text.add(character * PART_CHARACTERS)
    (part,) = heard.parts
    dumped = part.dump()
    assert len(dumped.encode()) < 7_500
    assert "\0" not in dumped
    assert AgentText.load(dumped) == part
