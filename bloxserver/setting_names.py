"""Finds variables whose names are probably misspelt settings; such a variable has no effect."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

PREFIX = "BLOXSERVER_"
"""Our settings have no prefix; a name with this one is meant for us."""
LONG_WORD = 7
"""Words of this length or more may differ by two characters, shorter ones by one: WORKER is not DOCKER."""


def find_misspelt(given: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """The given names that are not settings but nearly one, each with that setting. All names are in upper case.

    Two names are near if they have the same words, or as many words of which each differs by a character or two.
    Settings of a single word, such as HOST, have no near names: too many names of other programs resemble them.
    """
    known = set(known)
    candidates = sorted(name for name in known if "_" in name)
    found = {}
    for name in sorted(set(given) - known):
        near = next((setting for setting in candidates if _is_near(name.removeprefix(PREFIX), setting)), None)
        if near is not None:
            found[name] = near
    return found


def _is_near(name: str, setting: str) -> bool:
    if name.replace("_", "") == setting.replace("_", ""):
        return True
    words, expected = name.split("_"), setting.split("_")
    return len(words) == len(expected) and all(map(_is_near_word, words, expected))


def _is_near_word(word: str, expected: str) -> bool:
    if sorted(word) == sorted(expected):
        return True  # characters in another order
    changes = SequenceMatcher(None, word, expected, autojunk=False).get_opcodes()
    distance = sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in changes if kind != "equal")
    return distance <= (2 if len(expected) >= LONG_WORD else 1)
