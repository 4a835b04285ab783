"""`python`: answers, errors and the sandbox of snippets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import JsonValue, ValidationError

from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.blocks.checking import checking
from bloxserver.blocks.python import MAX_CODE_BYTES, PythonConfig
from bloxserver.blocks.python_snippets import MAX_ANSWER_BYTES
from tests.blocks.snippets import LOOP, failure, run

MODULES = """
builtins ctypes concurrent.futures ftplib gc http.client http.server importlib inspect io.open_code marshal mmap monty
multiprocessing pickle pkgutil platform psutil pty resource runpy select shutil signal site smtplib socket
sqlite3 ssl subprocess tempfile threading traceback types urllib.request webbrowser weakref zipimport _thread posix
"""
ESCAPES = [
    "open('/etc/passwd').read()",
    "open('/tmp/written', 'w')",
    "from pathlib import Path\nPath('/etc/passwd').read_text()",
    "from pathlib import Path\nPath('/tmp/written').write_text('x')",
    "import os\nos.listdir('/')",
    "import os\nos.environ['PATH']",
    "import os\nos.getenv('PATH')",
    "import os\nos.system('id')",
    "import os\nos.fork()",
    "import os\nos.kill(1, 9)",
    "import os\nos.urandom(4)",
    "import sys\nsys.modules['os']",
    "import sys\nsys._getframe()",
    "import sys\nsys.exit(3)",
    "import time\ntime.sleep(3600)",
    "import asyncio\nawait asyncio.sleep(3600)",
    "__import__('os')",
    "__builtins__",
    "__loader__",
    "globals()['__builtins__']",
    "input()",
    "breakpoint()",
    "compile('1', '', 'exec')",
    "eval('open(\"/etc/passwd\")')",
    "exec('import socket')",
    "().__class__.__bases__[0].__subclasses__()",
    "getattr((), '__class__')",
    "getattr(payload, '__class__').__mro__",
    "type(payload).__mro__",
    "object.__subclasses__()",
    "(lambda: 0).__globals__",
    "(lambda: 0).__code__",
    "def f():\n    pass\nf.__globals__",
    "class A:\n    def __reduce__(self):\n        pass\nA().__class__.__base__.__subclasses__()",
    "'{0.__class__}'.format(payload)",
    "f'{payload.__class__}'",
    "try:\n    1 / 0\nexcept Exception as error:\n    error.__traceback__.tb_frame",
    "raise SystemExit(3)",
    "raise KeyboardInterrupt",
    "raise BaseException('out')",
]
HEAVY = [
    "'a' * 10**9",
    "[0] * 10**9",
    "bytes(10**9)",
    "10**10**8",
    "f'{1:>1000000000}'",
    "'%1000000000d' % 1",
    "x = [1]\nwhile True:\n    x += x",
    "x = 'a'\nwhile True:\n    x += x",
    "[str(n) for n in range(10**7)]",
    "def f():\n    return f()\nf()",
    "def f(n):\n    return [f(n + 1)]\nf(0)",
    LOOP,
    "while True:\n    try:\n        open('/x')\n    except BaseException:\n        pass",
    "try:\n    while True:\n        pass\nexcept BaseException:\n    pass\n7",
    "while True:\n    print('x' * 1000)",
    "sum(range(10**10))",
    "sorted(range(10**7), key=lambda n: -n)",
    "import math\nmath.factorial(10**7)",
    "import re\nre.match(r'(a+)+\\1$', 'a' * 40 + 'b')",
    "x = []\nfor _ in range(100000):\n    x = [x]\nx",
    "x = [0] * 1000\ny = [x] * 1000\n[y] * 1000",
    "x = 'a' * 1000000\n[x] * 1000000",
]


class TestAnswer:
    @pytest.mark.parametrize(
        ("code", "payload", "answer"),
        [
            ("payload", {"é": [1, 2.5, None, True, "日"]}, {"é": [1, 2.5, None, True, "日"]}),
            ("payload['a'] + 1", {"a": 1}, 2),
            ("x = 1\ny = 2\nx, y", None, [1, 2]),
            ("if payload > 3:\n    return 'much'\nreturn 'little'", 4, "much"),
            ("def double(n):\n    return n * 2\n[double(n) for n in payload]", [1, 2], [2, 4]),
            ("x = 1", None, None),
            ("# nothing", None, None),
            ("print('dropped')", None, None),
            ("import json, re, math, datetime, hashlib\nlen(re.findall('a+', payload))", "aa b a", 2),
            ("2**63 - 1", None, 2**63 - 1),
            ("-(2**63)", None, -(2**63)),
            ("{'a': (1, (2,))}", None, {"a": [1, [2]]}),
        ],
    )
    async def test_answer_is_the_value_of_the_last_expression_or_return(
        self, context: BlockContext, code: str, payload: JsonValue, answer: JsonValue
    ) -> None:
        assert await run(context, code, payload) == answer

    @pytest.mark.parametrize(
        ("code", "told"),
        [
            ("float('nan')", "contains the number nan, which is not JSON"),
            ("[1e308 * 10]", "contains the number inf, which is not JSON"),
            ("2**63", "contains a number of more than 64 bits"),
            ("{'a': 10**3000}", "contains a number of more than 64 bits"),
            ("10**100000", "contains a number of more than 64 bits"),
            ("'a\\0b'", "contains a text with a NUL character or half of a surrogate pair"),
            ("{'a\\0': 1}", "contains a text with a NUL character or half of a surrogate pair"),
            ("{1: 2}", "contains a dict with a key that is not a string"),
            ("{1, 2}", "contains a value of type set, which is not JSON"),
            ("b'a'", "contains a value of type bytes, which is not JSON"),
            ("import datetime\n[datetime.date(2026, 1, 2)]", "contains a value of type date, which is not JSON"),
            ("x = []\nfor _ in range(64):\n    x = [x]\nx", "is nested more than 64 levels deep"),
            ("'é' * 524287", "is larger than 1048576 bytes"),
            ("[12345678] * 120000", "is larger than 1048576 bytes"),
            ("x = [[]] * 1000\n[x] * 400", "is larger than 1048576 bytes"),
        ],
    )
    async def test_answer_that_cannot_be_stored_is_an_error(self, context: BlockContext, code: str, told: str) -> None:
        error = await failure(context, code)
        assert (error.code, error.message, error.retryable) == ("invalid_answer", f"the answer {told}", False)

    async def test_answer_at_the_limits_is_accepted(self, context: BlockContext) -> None:
        assert await run(context, "'a' * payload", MAX_ANSWER_BYTES - 3) == "a" * (MAX_ANSWER_BYTES - 3)
        answer = await run(context, "x = 1\nfor _ in range(64):\n    x = [x]\nx")
        for _ in range(64):
            assert isinstance(answer, list)
            [answer] = answer
        assert answer == 1


class TestErrors:
    @pytest.mark.parametrize(
        ("code", "told"),
        [
            ("x = 1\ny = x / 0", "line 2: ZeroDivisionError: division by zero"),
            ("payload['a']", "line 1: KeyError: a"),
            ("def f():\n    raise ValueError('why')\n\nf()", "line 2: ValueError: why"),
            ("missing", "line 1: NameError: name 'missing' is not defined"),
            ("import numpy", "line 1: ModuleNotFoundError: No module named 'numpy'"),
            ("raise ValueError('a\\0b')", "line 1: ValueError: a\ufffdb"),
            ("raise ValueError('x' * 10000)", f"line 1: ValueError: {'x' * 480}"),
        ],
        ids=lambda value: ascii(value)[:40],
    )
    async def test_runtime_error_has_line_and_reason(self, context: BlockContext, code: str, told: str) -> None:
        error = await failure(context, code, {})
        assert (error.code, error.message, error.retryable) == ("python_failed", told, False)

    @pytest.mark.parametrize(
        ("code", "told"),
        [
            ("def f(:\n    pass", "line 1: SyntaxError: Expected a parameter or the end of the parameter list"),
            ("x = 1\n\ny = = 2", "line 3: SyntaxError: Expected an expression"),
            ("  x = 1", "line 1: SyntaxError: Unexpected indentation"),
            ("x = (1,\n", "line 2: SyntaxError: unexpected EOF while parsing"),
            ("x = 1\nyield x", "line 2: NotImplementedError: The monty syntax parser does not yet support yield"),
            ("(" * 10_000, "line 1: SyntaxError: Source is too deeply nested"),
            ("x" * (MAX_CODE_BYTES + 1), "must not exceed 20000 bytes"),
            ("é" * (MAX_CODE_BYTES // 2 + 1), "must not exceed 20000 bytes"),
        ],
        ids=lambda value: ascii(value)[:40],
    )
    def test_syntax_errors_are_reported_by_the_config(self, code: str, told: str) -> None:
        with pytest.raises(ValidationError) as caught:
            check({"code": code})
        [error] = caught.value.errors()
        assert (error["loc"], error["msg"].startswith(f"Value error, {told}")) == (("code",), True)

    @pytest.mark.parametrize("code", [LOOP, "1 / 0", "'a' * 10**9", "'" + "x" * (MAX_CODE_BYTES - 2) + "'", "# x"])
    def test_runtime_errors_are_not_reported_by_the_config(self, code: str) -> None:
        assert check({"code": code}).code == code

    @pytest.mark.parametrize(
        ("code", "told"),
        [
            ("import io", "line 1: ModuleNotFoundError: No module named 'io'"),
            ("x = 1\nimport json, uuid", "line 2: ModuleNotFoundError: No module named 'uuid'"),
            ("from io import StringIO", "line 1: ModuleNotFoundError: No module named 'io'"),
            ("from json import missing", "line 1: ImportError: cannot import name 'missing' from 'json'"),
            ("import collections.abc", "line 1: ModuleNotFoundError: No module named 'collections.abc'"),
            ("def f():\n    import numpy as np\n    return np", "line 2: ModuleNotFoundError: No module named 'numpy'"),
            ("import math\nmath.missing(1)", "line 2: AttributeError: module 'math' has no attribute 'missing'"),
            ("import math as m\nm.missing", "line 2: AttributeError: module 'math' has no attribute 'missing'"),
            ("missing(payload)", "line 1: NameError: name 'missing' is not defined"),
            ("[n for n in payload if m]", "line 1: NameError: name 'm' is not defined"),
            ("super()", "line 1: NameError: name 'super' is not defined"),
            ("globals()", "line 1: NameError: name 'globals' is not defined"),
            ("open('/x')", "line 1: open: a snippet has no files"),
            ("class A(payload):\n    pass", "line 1: NotImplementedError: The monty syntax parser does not yet"),
            (
                "missing\nimport io\nimport uuid",
                "line 1: NameError: name 'missing' is not defined; line 2: ModuleNotFoundError: No module named 'io'; "
                "line 3: ModuleNotFoundError: No module named 'uuid'",
            ),
        ],
        ids=lambda value: ascii(value)[:40],
    )
    def test_unknown_names_are_reported_by_the_config(self, code: str, told: str) -> None:
        with pytest.raises(ValidationError) as caught:
            check({"code": code})
        [error] = caught.value.errors()
        assert error["msg"].startswith(f"Value error, {told}")

    @pytest.mark.parametrize(
        "code",
        [
            "try:\n    import io\nexcept ImportError:\n    pass",
            "try:\n    missing\nexcept NameError as error:\n    str(error)",
            "import os.path\nos.path.join('a', 'b')",
            "import datetime as d\nd.datetime.now().isoformat()",
            "from __future__ import annotations\nfrom datetime import datetime as d\nd(2026, 1, 1).year",
            "import math\nhasattr(math, 'missing') and math.missing",
            "import json\njson = payload\njson.missing",
            "def f(a: Nobody, *b, c=1, **d) -> Nobody:\n    e: Nobody = a, b, c, d\n    return e\nf(1)",
            "def f():\n    global g\n    g = 1\nf()\ng",
            "for i, (j, *k) in payload:\n    i, j, k",
            "{a: b for a, b in payload if (c := a)}\n(lambda x: x)(c)",
            "match payload:\n    case {'a': a, **rest}:\n        a, rest\n    case [b, *c] as d:\n        b, c, d",
            "class A:\n    def m(self):\n        return self\nA().m()",
            "__file__, __name__, print, payload",
            "'\\d'",
        ],
        ids=lambda value: ascii(value)[:40],
    )
    def test_known_names_are_accepted(self, code: str) -> None:
        assert check({"code": code}).code == code

    @pytest.mark.parametrize(
        "config",
        [
            {},
            {"code": ""},
            {"code": 1},
            {"code": "\ud800"},
            {"code": "1", "timeout_seconds": 0.05},
            {"code": "1", "timeout_seconds": 31},
            {"code": "1", "timeout_seconds": float("nan")},
            {"code": "1", "memory_mb": 0},
            {"code": "1", "memory_mb": 257},
            {"code": "1", "imports": ["os"]},
        ],
        ids=ascii,
    )
    def test_invalid_python_configs_are_rejected(self, config: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            check(config)


class TestSandbox:
    @pytest.mark.parametrize("code", ESCAPES)
    async def test_snippet_has_no_access_to_the_system(self, context: BlockContext, code: str) -> None:
        error = await failure(context, code, {}, timeout_seconds=1)
        assert (error.code, error.retryable) == ("python_failed", False)
        assert "root:" not in error.message

    @pytest.mark.parametrize("module", MODULES.split())
    async def test_modules_with_system_access_cannot_be_imported(self, context: BlockContext, module: str) -> None:
        name, _, member = module.rpartition(".")
        code = f"from {name} import {member}" if name else f"import {module}"
        assert (await failure(context, code)).code == "python_failed"

    @pytest.mark.parametrize("code", ["eval('1 + 1')", "exec('x = 2')", "type(1)", "import os\nos.getcwd()"])
    async def test_sandbox_escapes_fail(self, context: BlockContext, code: str) -> None:
        assert str(await _outcome(context, code)) in {"2", "None", "/", "invalid_answer"}

    @pytest.mark.parametrize("code", HEAVY)
    async def test_snippets_that_exceed_limits_are_stopped(self, context: BlockContext, code: str) -> None:
        async with asyncio.timeout(20):
            error = await failure(context, code, timeout_seconds=0.5, memory_mb=16)
        assert (error.code, error.retryable) in {("python_failed", False), ("invalid_answer", False)}

    async def test_snippets_share_no_state(self, context: BlockContext) -> None:
        await run(context, "left = 1\ndef len(x):\n    return -1\n1")
        assert (await failure(context, "left")).message == "line 1: NameError: name 'left' is not defined"
        assert await run(context, "len('abc')") == 3


def check(config: dict[str, Any]) -> PythonConfig:
    """Validate a config completely, as for a definition that is being checked."""
    with checking():
        return PythonConfig.model_validate(config)


async def _outcome(context: BlockContext, code: str) -> JsonValue:
    try:
        return await run(context, code)
    except BlockError as error:
        return error.code
