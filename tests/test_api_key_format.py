"""The format of API keys."""

from __future__ import annotations

import random

import pytest

from bloxserver.api_key_format import ALPHABET, PREFIX, hash_of, hint_of, is_key, is_well_formed, new_key


def test_keys_have_a_prefix_and_a_checksum() -> None:
    keys = {new_key() for _ in range(1_000)}
    assert len(keys) == 1_000
    assert all(is_key(key) and is_well_formed(key) and len(key) == 45 for key in keys)


def test_checksum_is_the_same_in_later_versions() -> None:
    assert is_well_formed("blx_live_0123456789ABCDEFGHIJKLMNOPQRST4PMbyp")


def test_random_text_is_not_well_formed() -> None:
    generator = random.Random(7)  # noqa: S311
    texts = (PREFIX + "".join(generator.choices(ALPHABET, k=36)) for _ in range(20_000))
    assert not any(map(is_well_formed, texts))


@pytest.mark.parametrize("change", ["{}x", "x{}", " {}", "{}\n", "{}é"])
def test_key_with_other_characters_is_not_well_formed(change: str) -> None:
    assert not is_well_formed(change.format(new_key()))


def test_hint_shows_four_characters_of_the_key() -> None:
    key = new_key()
    assert hint_of(key) == f"blx_live_…{key[-4:]}"
    assert hash_of(key) != hash_of(new_key())
