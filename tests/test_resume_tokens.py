"""Signed tokens of the URLs that resume executions."""

from __future__ import annotations

import base64
import string
from uuid import UUID

import pytest
from pydantic import SecretStr

from bloxserver.encryption import SecretCipher
from bloxserver.resume_tokens import MAX_TOKEN, ResumeTokens, get_resume_tokens
from bloxserver.settings import Settings

ID = UUID(int=7)
ALPHABET = f"{string.ascii_letters}{string.digits}-_"
KEY, OTHER = "k" * 32, "o" * 32


@pytest.mark.parametrize("listener", ["a", "a-b.c_d", "x" * 64])
def test_token_names_execution_and_listener(listener: str) -> None:
    tokens = ResumeTokens([KEY])
    token = tokens.sign(ID, listener)
    assert tokens.read(token) == (ID, listener)
    assert len(token) <= MAX_TOKEN


def test_all_keys_verify_and_the_first_signs() -> None:
    old, rotated = ResumeTokens([OTHER]), ResumeTokens([KEY, OTHER])
    assert rotated.read(old.sign(ID, "a")) == (ID, "a")
    assert rotated.sign(ID, "a") == ResumeTokens([KEY]).sign(ID, "a")
    assert ResumeTokens([KEY]).read(old.sign(ID, "a")) is None


def test_changed_token_is_invalid() -> None:
    tokens = ResumeTokens([KEY])
    token = tokens.sign(ID, "ask")
    decoded = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    for position in range(len(decoded)):
        changed = bytearray(decoded)
        changed[position] ^= 1
        assert tokens.read(base64.urlsafe_b64encode(changed).decode().rstrip("=")) is None


@pytest.mark.parametrize("listener", ["a", "ab", "abc"])
def test_token_has_one_spelling(listener: str) -> None:
    """The last character may have bits that base64 ignores."""
    tokens = ResumeTokens([KEY])
    token = tokens.sign(ID, listener)
    others = [token[:-1] + last for last in ALPHABET if last != token[-1]]
    assert [tokens.read(other) for other in others] == [None] * 63


@pytest.mark.parametrize("token", ["", "a", "ä", "=", "a b", "A" * 43, "A" * 10_000, "\ud800"])
def test_other_text_is_invalid(token: str) -> None:
    assert ResumeTokens([KEY]).read(token) is None


def test_key_of_tokens_is_not_the_key_of_secrets() -> None:
    content = ID.bytes + b"a"
    token = ResumeTokens([KEY]).sign(ID, "a")
    cipher = SecretCipher([KEY])
    with pytest.raises(Exception, match="unknown key"):
        cipher.decrypt(token, owner=ID, name="a")
    assert base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).endswith(content)


def test_installation_without_a_key_has_no_tokens() -> None:
    assert get_resume_tokens(Settings()) is None
    assert get_resume_tokens(Settings(api_key_encryption_key=SecretStr("short"))) is None
    assert get_resume_tokens(Settings(api_key_encryption_key=SecretStr(KEY))) is not None
