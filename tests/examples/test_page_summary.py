"""examples/page-summary.yaml"""

from __future__ import annotations

import httpx

from tests.clients.loopback import LoopbackServer, answer
from tests.examples.conftest import Engines
from tests.examples.installation import Flow, definition
from tests.llm_server import calls, language_model, says

HTML = {"Content-Type": "text/html; charset=utf-8"}
PAGE = b"""<!doctype html><html><head><title> The bridge
is open </title><style>p { color: red }</style><script>track("visitor")</script></head>
<body><nav>Home News</nav><h1>The bridge is open</h1><p>After <b>two</b> years it carries traffic.</p>
<footer>Imprint</footer></body></html>"""


async def test_page_is_summarised(
    live_client: httpx.AsyncClient, engine_with: Engines, outside: LoopbackServer
) -> None:
    outside.answers |= {
        "/old": answer(status="302 Found", headers={"Location": "/bridge"}),
        "/bridge": answer(PAGE, headers=HTML),
    }
    async with (
        language_model([says("The bridge is open again.", input_tokens=120, output_tokens=8)]) as model,
        engine_with(llm_base_url=model.url, llm_model="scripted"),
    ):
        flow = await Flow.started(live_client, definition("page-summary", outside))
        run = await flow.run({"url": outside.url("/old")})
    assert (run.status, run.output) == ("success", {"text": "The bridge is open again."})
    assert run.steps == [("fetch", "success", 1), ("read", "success", 1), ("summarise", "success", 1)]
    [asked] = model.requests
    prompt, told = asked.texts
    assert prompt.startswith("You are given the title and the text of a web page")
    words = "The bridge is open The bridge is open After two years it carries traffic."
    assert told == f'{{"title":"The bridge\\nis open","text":"{words}"}}'
    assert (asked.json["temperature"], [tool["function"]["name"] for tool in asked.json["tools"]]) == (0, ["look_up"])
    assert (run.execution["inputTokens"], run.execution["outputTokens"]) == (120, 8)


async def test_agent_can_fetch_another_page(
    live_client: httpx.AsyncClient, engine_with: Engines, outside: LoopbackServer
) -> None:
    outside.answers |= {
        "/teaser": answer(b"<p>Read it <a href=/full>here</a></p>", headers=HTML),
        "/full": answer(b"<p>All of it.</p>", headers=HTML),
    }
    full = outside.url("/full")
    script = [calls(("look_up", {"url": full})), says("All of it, in short.")]
    async with language_model(script) as model, engine_with(llm_base_url=model.url, llm_model="scripted"):
        flow = await Flow.started(live_client, definition("page-summary", outside))
        run = await flow.run({"url": outside.url("/teaser")})
    assert (run.status, run.output) == ("success", {"text": "All of it, in short."})
    assert run.by_listener["look_up"]["parentId"] == run.by_listener["summarise"]["id"]
    assert "<p>All of it.</p>" in model.requests[1].texts[-1]
    assert [(request.method, request.path) for request in outside.received] == [("GET", "/teaser"), ("GET", "/full")]


async def test_agent_is_stopped_at_max_calls(
    live_client: httpx.AsyncClient, engine_with: Engines, outside: LoopbackServer
) -> None:
    outside.answers["/"] = answer(b"<p>Read on</p>", headers=HTML)
    script = [calls(("look_up", {"url": outside.url("/")}))] * 3
    async with language_model(script) as model, engine_with(llm_base_url=model.url, llm_model="scripted"):
        flow = await Flow.started(live_client, definition("page-summary", outside))
        run = await flow.run({"url": outside.url("/")})
    assert run.error == "summarise: the model has not finished after 3 requests (max_calls)"
    assert len(model.requests) == 3


async def test_failed_page_request_does_not_call_the_model(
    live_client: httpx.AsyncClient, engine_with: Engines, outside: LoopbackServer
) -> None:
    outside.answers |= {
        "/gone": answer(status="404 Not Found"),
        "/report.pdf": answer(b"%PDF\0", headers={"Content-Type": "application/pdf"}),
    }
    async with language_model([]) as model, engine_with(llm_base_url=model.url, llm_model="scripted"):
        flow = await Flow.started(live_client, definition("page-summary", outside))
        gone = await flow.run({"url": outside.url("/gone")})
        binary = await flow.run({"url": outside.url("/report.pdf")})
    assert gone.error == "fetch (attempt 1 of 3): 127.0.0.1 answered 404 Not Found"
    assert binary.error == "read: line 3: ValueError: this is no web page"
    assert model.requests == []
