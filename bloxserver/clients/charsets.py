"""Decodes text as the Encoding standard of the WHATWG says, as browsers do."""

from __future__ import annotations

import codecs
import re
from functools import lru_cache

import webencodings

CHARSET = re.compile(r""";\s*charset\s*=\s*["']?([^\s;,"']+)""", re.IGNORECASE)
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16le", codecs.BOM_UTF16_BE: "utf-16be"}
# The standard's decoders of these are supersets, or go by another name in Python.
PYTHON_NAMES = {
    "big5": "big5hkscs",
    "euc-kr": "cp949",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "utf-16be": "utf-16-be",
    "utf-16le": "utf-16-le",
}
MULTIBYTE = frozenset({*PYTHON_NAMES, "utf-8", "gb18030", "euc-jp", "iso-2022-jp"})
UNDECODABLE = frozenset({"replacement", "x-user-defined"})
REPLACEMENT = "\ufffd"


def charset_of(content_type: str) -> str | None:
    """The name of the encoding that a Content-Type declares; None where it declares none, or one that is unknown."""
    declared = CHARSET.search(content_type)
    encoding = webencodings.lookup(declared[1]) if declared else None
    return None if encoding is None or encoding.name in UNDECODABLE else encoding.name


def decode(content: bytes, charset: str | None) -> str:
    """The text in `content`, without a byte order mark, which goes before `charset`. Invalid bytes become U+FFFD.

    `charset` is a name that `charset_of` returns. With neither a mark nor a charset the text is UTF-8, and invalid
    bytes raise `UnicodeDecodeError`; so does invalid UTF-16 that only a mark declares.
    """
    for mark, name in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            errors = "strict" if charset is None else "replace"
            return content[len(mark) :].decode(PYTHON_NAMES.get(name, name), errors)
    if charset is None:
        return content.decode()
    if charset in MULTIBYTE:
        return content.decode(PYTHON_NAMES.get(charset, charset), "replace")
    return codecs.charmap_decode(content, "strict", _characters(charset))[0]


@lru_cache
def _characters(charset: str) -> str:
    """The character of each byte. The standard has control characters where Python's tables have none."""
    encoding = webencodings.lookup(charset)
    assert encoding is not None  # noqa: S101
    characters = []
    for byte in range(256):
        try:
            character, _ = encoding.codec_info.decode(bytes([byte]), "strict")
        except UnicodeDecodeError:
            character = chr(byte) if 0x80 <= byte < 0xA0 else REPLACEMENT
        characters.append(character)
    return "".join(characters)
