"""Which clients may see the pages and act on runs."""

from __future__ import annotations

import html
import re
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from web.runs import passing

from asyncflow.web import app

TOKEN = "a token that is hard to guess"
RUN = "/runs/nightly"


@pytest.fixture
async def journal_with_run(journal: Any) -> Any:
    await passing().with_options(run_id="nightly", journal=journal).run()
    return journal


# Hosts.


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8765", "localhost:99", "[::1]:8765", "127.8.8.8", "ui.localhost", "LOCALHOST"],
)
async def test_a_loopback_host_is_accepted_without_a_token(
    make_client: Any, journal_with_run: Any, host: str
) -> None:
    answer = await make_client(app(journal_with_run)).get(RUN, headers={"host": host})

    assert answer.status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "10.0.0.7", "", "[::1"])
@pytest.mark.parametrize(
    "path", ["/", RUN, "/events/nightly", "/parts/nightly", "/api/runs", "/assets/web.css"]
)
async def test_another_host_is_refused_without_a_token(
    make_client: Any, journal_with_run: Any, host: str, path: str
) -> None:
    answer = await make_client(app(journal_with_run)).get(path, headers={"host": host})

    assert answer.status_code == 421
    assert "allowed_hosts" in answer.text


async def test_a_host_can_be_allowed(make_client: Any, journal_with_run: Any) -> None:
    client = make_client(app(journal_with_run, allowed_hosts=["Runs.example"]))

    assert (await client.get(RUN, headers={"host": "runs.example:80"})).status_code == 200
    assert (await client.get(RUN, headers={"host": "localhost"})).status_code == 200
    assert (await client.get(RUN, headers={"host": "other.example"})).status_code == 421


# Sites.

FOREIGN_HEADERS = [
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:8765"},
    {"origin": "http://evil.example"},
    {"origin": "http://127.0.0.1:3000"},
    {"origin": "null"},
]


@pytest.mark.parametrize("headers", FOREIGN_HEADERS)
@pytest.mark.parametrize("act", ["cancel", "resume"])
async def test_another_site_cannot_act(
    make_client: Any, journal_with_run: Any, act: str, headers: dict[str, str]
) -> None:
    answer = await make_client(app(journal_with_run)).post(f"/{act}/nightly", headers=headers)

    assert answer.status_code == 403
    assert "Nothing was done" in answer.text


async def test_another_site_cannot_act_with_a_cookie(
    make_client: Any, journal_with_run: Any
) -> None:
    client = make_client(app(journal_with_run, token=TOKEN))
    await client.get(f"/?token={TOKEN}")

    answer = await client.post("/cancel/nightly", headers={"sec-fetch-site": "cross-site"})

    assert answer.status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1:8765"},
        {"origin": "http://127.0.0.1:8765"},
        {"sec-fetch-site": "same-origin", "origin": "null"},
        {},
    ],
)
async def test_our_pages_and_programs_can_act(
    make_client: Any, journal_with_run: Any, headers: dict[str, str]
) -> None:
    answer = await make_client(app(journal_with_run)).post("/cancel/nightly", headers=headers)

    assert answer.status_code == 409
    assert "It has ended already: it has passed." in answer.text


async def test_another_site_can_link_here_but_not_read(
    make_client: Any, journal_with_run: Any
) -> None:
    client = make_client(app(journal_with_run))
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    fetch = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}

    assert (await client.get(RUN, headers=link)).status_code == 200
    for path in ("/events/nightly", "/parts/nightly"):
        assert (await client.get(path, headers=fetch)).status_code == 403
    assert "access-control-allow-origin" not in (await client.get("/api/runs")).headers


# The token.


async def test_nothing_is_shown_without_the_token(make_client: Any, journal_with_run: Any) -> None:
    client = make_client(app(journal_with_run, token=TOKEN), "http://runs.example")

    for path in ("/", RUN, "/runs/unknown", "/nowhere"):
        answer = await client.get(path)
        assert answer.status_code == 401
        assert 'type="password"' in answer.text
        assert "nightly" not in answer.text.replace(path, "")
    for path in ("/api/runs", "/api/runs/nightly/events", "/events/nightly", "/parts/nightly"):
        answer = await client.get(path, headers={"accept": "application/json"})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"] == "The token is missing"
    assert (await client.post("/cancel/nightly")).status_code == 401
    assert (await client.get("/assets/web.css")).status_code == 200


async def test_a_program_sends_the_token_in_a_header(
    make_client: Any, journal_with_run: Any
) -> None:
    client = make_client(app(journal_with_run, token=TOKEN))

    right = await client.get("/api/runs", headers={"authorization": f"bearer {TOKEN}"})
    wrong = await client.get("/api/runs", headers={"authorization": f"Bearer {TOKEN}."})
    other = await client.get("/api/runs", headers={"authorization": f"Basic {TOKEN}"})

    assert right.json()["runs"][0]["run_id"] == "nightly"
    assert (wrong.status_code, other.status_code) == (401, 401)


async def test_a_browser_exchanges_the_token_in_the_url_for_a_cookie(
    make_client: Any, journal_with_run: Any
) -> None:
    client = make_client(app(journal_with_run, token=TOKEN), "https://runs.example")

    answer = await client.get(RUN, params={"token": TOKEN, "step": "load"})

    assert answer.status_code == 303
    assert answer.headers["location"] == f"{RUN}?step=load"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Secure" in cookie
    assert "Path=/;" in cookie
    assert TOKEN not in cookie
    assert (await client.get(RUN)).status_code == 200
    assert (await client.get(RUN, params={"token": "wrong", "step": "load"})).status_code == 200


async def test_a_wrong_token_or_cookie_is_refused(make_client: Any, journal_with_run: Any) -> None:
    client = make_client(app(journal_with_run, token=TOKEN))
    await client.get(f"/?token={TOKEN}")
    name = next(iter(client.cookies))
    other = make_client(app(journal_with_run, token=TOKEN))

    for wrong in (b"wrong", "ä".encode()):
        cookie = {"cookie": f"{name}=".encode() + wrong}
        assert (await other.get("/", headers=cookie)).status_code == 401
    assert (await other.get("/?token=wrong")).status_code == 401
    assert (await other.post(f"/?token={TOKEN}")).status_code == 401


async def test_the_form_takes_the_token_and_returns_to_the_page(
    make_client: Any, journal_with_run: Any
) -> None:
    client = make_client(app(journal_with_run, token=TOKEN))
    form = (await client.get(f"{RUN}?step=a&attempt=1")).text
    assert f'value="{RUN}?step=a&amp;attempt=1"' in form

    answer = await client.post("/login", data={"token": TOKEN, "then": f"{RUN}?step=a"})

    assert answer.status_code == 303
    assert answer.headers["location"] == f"{RUN}?step=a"
    assert (await client.get(RUN)).status_code == 200


@pytest.mark.parametrize("run_id", ["what?", "a#b", "100%2F", "../x", "ä b", "//evil.example"])
async def test_a_login_returns_to_the_page_of_any_run_id(
    make_client: Any, journal: Any, run_id: str
) -> None:
    await passing().with_options(run_id=run_id, journal=journal).run()
    pages = Starlette(routes=[Mount("/ui", app(journal, token=TOKEN))])
    url = f"/ui/runs/{quote(run_id, safe='')}"
    by_link, by_form = make_client(pages), make_client(pages)
    form = (await by_form.get(f"{url}?attempt=1")).text
    (target,) = re.findall(r'name="then" value="([^"]*)"', form)

    link = await by_link.get(f"{url}?token={TOKEN}")
    login = await by_form.post("/ui/login", data={"token": TOKEN, "then": html.unescape(target)})

    assert (await by_link.get(link.headers["location"])).status_code == 200
    assert login.headers["location"].endswith("?attempt=1")
    assert (await by_form.get(login.headers["location"])).status_code == 200


async def test_the_form_reports_a_wrong_token(make_client: Any, journal_with_run: Any) -> None:
    client = make_client(app(journal_with_run, token=TOKEN))

    answer = await client.post("/login", data={"token": "wrong", "then": RUN})

    assert answer.status_code == 401
    assert "That is not the token." in answer.text
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "then",
    [
        *("//evil.example/x", "https://evil.example/x", "/\\evil.example/x", "\\/evil.example/x"),
        *("/\t/evil.example/x", "//[evil.example/x", "javascript:alert(1)", "\r\nx: y"),
    ],
)
async def test_the_form_never_redirects_to_another_site(
    make_client: Any, journal_with_run: Any, then: str
) -> None:
    answer = await make_client(app(journal_with_run, token=TOKEN)).post(
        "/login", data={"token": TOKEN, "then": then}
    )

    location = answer.headers["location"]
    assert location.startswith("/")
    assert not location.startswith(("//", "/\\"))


async def test_the_form_refuses_a_request_that_is_too_long(
    make_client: Any, journal_with_run: Any
) -> None:
    answer = await make_client(app(journal_with_run, token=TOKEN)).post(
        "/login", data={"token": "x" * 9_000}
    )

    assert answer.status_code == 413


async def test_a_server_without_a_token_has_no_form(
    make_client: Any, journal_with_run: Any
) -> None:
    assert (await make_client(app(journal_with_run)).post("/login")).status_code == 404


async def test_two_servers_on_one_machine_have_separate_cookies(
    make_client: Any, journal_with_run: Any
) -> None:
    first, second = (
        make_client(app(journal_with_run, token=TOKEN)),
        make_client(app(journal_with_run, token=f"{TOKEN} 2")),
    )
    await first.get(f"/?token={TOKEN}")
    await second.get("/", params={"token": f"{TOKEN} 2"})

    assert set(first.cookies) != set(second.cookies)


async def test_a_malformed_host_or_origin_is_refused(
    make_client: Any, journal_with_run: Any
) -> None:
    client = make_client(app(journal_with_run, token=TOKEN))
    await client.get(f"/?token={TOKEN}")

    host = await client.get(f"/?token={TOKEN}", headers={"host": "[::1"})
    origin = await client.post("/cancel/nightly", headers={"origin": "http://[evil"})

    assert host.status_code == 421
    assert origin.status_code == 403


@pytest.mark.parametrize(("token", "error"), [("short", ValueError), (b"x" * 30, TypeError)])
def test_a_token_that_is_short_or_not_a_string_is_refused(
    journal: Any, token: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="token must"):
        app(journal, token=token)


# Headers of every answer.


@pytest.mark.parametrize("path", ["/", RUN, "/runs/unknown", "/nowhere", "/api/runs"])
async def test_every_answer_has_security_headers(
    make_client: Any, journal_with_run: Any, path: str
) -> None:
    headers = (await make_client(app(journal_with_run)).get(path)).headers

    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"


async def test_a_nonce_is_used_once(make_client: Any, journal_with_run: Any) -> None:
    client = make_client(app(journal_with_run))

    first, second = [(await client.get("/")).headers["content-security-policy"] for _ in "ab"]

    assert first != second


async def test_an_asset_can_be_cached_until_it_changes(
    make_client: Any, journal_with_run: Any
) -> None:
    client = make_client(app(journal_with_run))

    answer = await client.get("/assets/web.css")

    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-type"].startswith("text/css")
    assert (await client.get("/assets/page.html")).status_code == 404
    assert (await client.get("/assets/..%2Fweb.py")).status_code == 404


async def test_a_login_whose_client_leaves_ends_without_an_error(journal_with_run: Any) -> None:
    pages: Any = app(journal_with_run, token=TOKEN)
    sent: list[Any] = []
    headers = [(b"host", b"localhost"), (b"content-length", b"9")]

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/login", "query_string": b""}
    await pages({**scope, "scheme": "http", "headers": headers}, receive, send)

    assert sent[0]["status"] == 400


# Below another app.


async def test_links_include_the_mount_path(make_client: Any, journal_with_run: Any) -> None:
    service = Starlette(routes=[Mount("/a b/ui", app(journal_with_run, token=TOKEN))])
    client = make_client(service)

    admitted = await client.get(f"/a%20b/ui/runs/nightly?token={TOKEN}")
    above = await client.get("/a%20b/ui/runs")
    page = await client.get("/a%20b/ui/")
    run = await client.get("/a%20b/ui/runs/nightly")

    assert admitted.headers["location"] == "/a%20b/ui/runs/nightly"
    assert (above.status_code, above.headers["location"]) == (307, "/a%20b/ui/")
    assert "Path=/a%20b/ui/;" in admitted.headers["set-cookie"]
    assert 'href="/a%20b/ui/runs/nightly"' in page.text
    assert 'href="/a%20b/ui/assets/web.css' in page.text
    assert 'data-events-url="/a%20b/ui/events/nightly?after=' in run.text
    assert 'data-parts-url="/a%20b/ui/parts/nightly?started=' in run.text
    assert (await client.get("/a%20b/ui/assets/web.css")).status_code == 200
    api = await client.get("/a%20b/ui/api/runs/unknown")
    assert (api.status_code, api.json()["error"]) == (404, "There is no such run")


async def test_links_include_the_prefix_that_a_proxy_strips(journal_with_run: Any) -> None:
    transport = httpx.ASGITransport(app(journal_with_run), root_path="/ui")
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        page = await client.get("/")
        run = await client.get("/runs/nightly")

    assert 'href="/ui/runs/nightly"' in page.text
    assert 'data-cancel-url="/ui/cancel/nightly"' in run.text


async def test_another_protocol_is_passed_to_the_app(journal_with_run: Any) -> None:
    messages = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/", "headers": [], "query_string": b""}
    await app(journal_with_run)(scope, receive, send)

    assert messages[0]["type"] == "websocket.close"


async def test_a_server_without_raw_paths_is_supported(journal_with_run: Any) -> None:
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/runs/ä b",
        "query_string": f"token={TOKEN}&step=a".encode(),
        "headers": [(b"host", b"localhost")],
        "scheme": "http",
        "server": ("localhost", 80),
    }
    pages: Any = app(journal_with_run, token=TOKEN)
    await pages(scope, None, send)

    assert (b"location", b"/runs/%C3%A4%20b?step=a") in messages[0]["headers"]
