"""Finds environment variables whose names are probably misspelt settings."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

PREFIX = "BLOXSERVER_"
"""Settings have no prefix; a variable with this prefix is probably meant as a setting."""
LONG_WORD_LENGTH = 7
"""Words of at least this length may differ by two characters, shorter words by one, so that DOCKER is not WORKER."""


def find_misspelt(given: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Map each given name that resembles a setting to that setting. All names are in upper case.

    Two names are similar if they have the same number of words, and each word differs by at most one or two characters.
    Names are never similar to a setting of one word, such as HOST: variables of other programs often resemble those.
    """
    known = set(known)
    candidates = sorted(name for name in known if "_" in name)
    found = {}
    for name in sorted(set(given) - known):
        match = next((setting for setting in candidates if _is_similar(name.removeprefix(PREFIX), setting)), None)
        if match is not None:
            found[name] = match
    return found


def _is_similar(name: str, setting: str) -> bool:
    if name.replace("_", "") == setting.replace("_", ""):
        return True
    words, expected = name.split("_"), setting.split("_")
    return len(words) == len(expected) and all(map(_is_similar_word, words, expected))


def _is_similar_word(word: str, expected: str) -> bool:
    if sorted(word) == sorted(expected):
        return True  # transposed characters
    changes = SequenceMatcher(None, word, expected, autojunk=False).get_opcodes()
    distance = sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in changes if kind != "equal")
    return distance <= (2 if len(expected) >= LONG_WORD_LENGTH else 1)
