"""Decodes text according to the WHATWG Encoding standard, as browsers do."""

from __future__ import annotations

import codecs
import re
from functools import lru_cache

import webencodings

CHARSET = re.compile(r""";\s*charset\s*=\s*["']?([^\s;,"']+)""", re.IGNORECASE)
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16le", codecs.BOM_UTF16_BE: "utf-16be"}
# The standard's decoders for these names are supersets of Python's, or have another name in Python.
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


def parse_charset(content_type: str) -> str | None:
    """Return the name of the encoding in a Content-Type; None if it has no known encoding."""
    declared = CHARSET.search(content_type)
    encoding = webencodings.lookup(declared[1]) if declared else None
    return None if encoding is None or encoding.name in UNDECODABLE else encoding.name


def decode(content: bytes, charset: str | None) -> str:
    """Decode `content`. A byte order mark takes precedence over `charset` and is removed.

    `charset` is a name that `parse_charset` returns; invalid bytes then become U+FFFD. Without it, the encoding is that
    of the mark or else UTF-8, and invalid bytes raise `UnicodeDecodeError`.
    """
    for mark, name in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            errors = "strict" if charset is None else "replace"
            return content[len(mark) :].decode(PYTHON_NAMES.get(name, name), errors)
    if charset is None:
        return content.decode()
    if charset in MULTIBYTE:
        return content.decode(PYTHON_NAMES.get(charset, charset), "replace")
    return codecs.charmap_decode(content, "strict", _character_table(charset))[0]


@lru_cache
def _character_table(charset: str) -> str:
    """Return the character of each byte. Bytes that Python leaves undefined are control characters in the standard."""
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
