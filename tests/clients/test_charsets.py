"""Text according to the Encoding standard: https://encoding.spec.whatwg.org."""

from __future__ import annotations

import pytest
from webencodings.labels import LABELS

from bloxserver.clients.charsets import MULTIBYTE, UNDECODABLE, decode, parse_charset

REPLACED = "\ufffd"


class TestCharset:
    @pytest.mark.parametrize(
        ("content_type", "charset"),
        [
            ("text/plain; charset=utf-8", "utf-8"),
            ('text/plain;CHARSET = "UTF8"', "utf-8"),
            ("text/plain; charset='iso-8859-15'; x=y", "iso-8859-15"),
            ("text/html; x=y; charset=ISO-8859-1", "windows-1252"),
            ("text/html; charset=us-ascii", "windows-1252"),
            ("text/html; charset=latin1", "windows-1252"),
            ("text/html; charset=iso-8859-9", "windows-1254"),
            ("text/html; charset=GB2312", "gbk"),
            ("text/html; charset=utf-16", "utf-16le"),
            ("text/html; charset=utf-8, text/html", "utf-8"),
            ("text/html; charset=utf-8; charset=gbk", "utf-8"),
            *(
                (f"text/html; {parameter}", None)
                for parameter in ("", "charset", "charset=", 'charset=""', "xcharset=utf-8")
            ),
            # Codecs of Python that are not web encodings.
            *(
                (f"text/html; charset={name}", None)
                for name in ("base64", "rot13", "utf-7", "idna", "utf-32", "é", "hz")
            ),
            *((f"text/html; charset={name}", None) for name in ("iso-2022-kr", "x-user-defined")),
        ],
    )
    def test_charset_is_parsed_from_the_content_type(self, content_type: str, charset: str | None) -> None:
        assert parse_charset(content_type) == charset

    @pytest.mark.parametrize("name", sorted({*LABELS.values()} - UNDECODABLE))
    def test_every_charset_name_can_be_decoded(self, name: str) -> None:
        assert parse_charset(f"text/plain; charset={name}") == name
        ascii_text = "abc".encode(name) if name.startswith("utf-16") else b"abc"
        assert decode(ascii_text, name) == "abc"
        text = decode(bytes(range(256)), name)
        assert len(text) == 256 or name in MULTIBYTE


class TestText:
    @pytest.mark.parametrize(
        ("charset", "content", "text"),
        [
            ("iso-8859-1", "Grüße".encode("latin-1"), "Grüße"),
            ("iso-8859-1", b"\x80 \x93quoted\x94", "€ “quoted”"),
            ("windows-1252", b"\x81\x8d\x8f\x90\x9d", "\x81\x8d\x8f\x90\x9d"),
            ("iso-8859-15", b"\xa4", "€"),
            ("windows-1253", b"\xaa\xe2", f"{REPLACED}β"),
            ("windows-1251", "Привет".encode("cp1251"), "Привет"),
            ("koi8-r", "Привет".encode("koi8-r"), "Привет"),
            ("gb2312", "中文镕".encode("gbk"), "中文镕"),
            ("gbk", "中€😀".encode("gb18030"), "中€😀"),
            ("big5", "中文".encode("big5"), "中文"),
            ("shift_jis", "日本①".encode("cp932"), "日本①"),
            ("euc-kr", "한국".encode("cp949"), "한국"),
            ("euc-jp", "日本".encode("euc-jp"), "日本"),
            ("iso-2022-jp", "日本".encode("iso-2022-jp"), "日本"),
            ("utf-16", "é日😀".encode("utf-16-le"), "é日😀"),
            ("utf-16be", "é日😀".encode("utf-16-be"), "é日😀"),
            ("utf-16", b"\x00\xd8a\x00b", f"{REPLACED}a{REPLACED}"),
            ("utf-8", b"a\xffb", f"a{REPLACED}b"),
            # A byte order mark takes precedence over the charset.
            ("iso-8859-1", "é".encode("utf-8-sig"), "é"),
            ("utf-8", b"\xff\xfe" + "é".encode("utf-16-le"), "é"),
            ("utf-16", b"\xfe\xff" + "é".encode("utf-16-be"), "é"),
            ("gbk", b"\xff\xfe\x00\xd8", REPLACED),
        ],
        ids=lambda value: ascii(value)[:40],
    )
    def test_text_is_decoded_with_its_charset(self, charset: str, content: bytes, text: str) -> None:
        assert decode(content, parse_charset(f"text/plain; charset={charset}")) == text

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            (b"", ""),
            ("é".encode(), "é"),
            ("é".encode("utf-8-sig"), "é"),
            ("\ufeffé".encode("utf-8-sig"), "\ufeffé"),
            (b"\xff\xfe" + "é😀".encode("utf-16-le"), "é😀"),
            (b"\xfe\xff" + "é😀".encode("utf-16-be"), "é😀"),
        ],
        ids=ascii,
    )
    def test_text_without_a_charset_is_utf8_unless_it_has_a_byte_order_mark(self, content: bytes, text: str) -> None:
        assert decode(content, None) == text

    @pytest.mark.parametrize(
        "content", [b"\xe9", b"\xef\xbb\xbf\xe9", b"\xff\xfe\x00\xd8", b"\xff\xfea", b"\xed\xa0\x80"], ids=ascii
    )
    def test_invalid_text_without_a_charset_is_an_error(self, content: bytes) -> None:
        with pytest.raises(UnicodeDecodeError):
            decode(content, None)
