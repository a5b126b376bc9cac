"""The runs of a journal in a browser, live: their list, and a page for each. Needs extra ``web``.

``asyncflow ui --journal runs.db`` serves them on this machine. `app` mounts them into an ASGI
service::

    from asyncflow.web import app
    from starlette.applications import Starlette
    from starlette.routing import Mount

    ui = app(journal, pipelines={"etl": etl}, token=os.environ["UI_TOKEN"])
    service = Starlette(routes=[..., Mount("/runs-ui", ui)])

The pages read only the journal, so the runs may be in any process. Cancelling a run goes through
the journal too. A run that is resumed from its page runs in this process.
"""

# One module a page, and the routes to them. They may import the journal, the report's page, the
# views and the core, and not the driver: the caller hands over pipelines. The command `ui` calls
# it, and whatever mounts `app`.

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

from asyncflow._core.errors import MissingExtraError

try:
    import jinja2  # noqa: F401
    import sse_starlette  # noqa: F401
    import uvicorn  # noqa: F401
    from starlette.applications import Starlette
except ImportError as _error:
    raise MissingExtraError(
        "the pages of runs need starlette, uvicorn, sse-starlette and jinja2, which come with an "
        "extra: pip install 'asyncflow-tiers[web]'"
    ) from _error

from asyncflow._core.arguments import check_count, check_number
from asyncflow.journal import PostgresJournal, SQLiteJournal
from asyncflow.web._auth import is_loopback
from asyncflow.web._resumer import Resumable
from asyncflow.web._routes import Site
from asyncflow.web._server import serve_app

__all__ = ["app", "serve"]


def app(
    journal: SQLiteJournal | PostgresJournal,
    *,
    pipelines: Mapping[str, Resumable] | None = None,
    token: str | None = None,
    allowed_hosts: Iterable[str] | None = None,
    grace_s: float = 30.0,
) -> Starlette:
    """Return the pages as an ASGI application, to mount into another one or to serve.

    Frameworks don't run the lifespan of a mounted application. Enter it from the service's own
    lifespan, so that resumed runs end cleanly with the service:
    ``async with ui.router.lifespan_context(ui): yield``. Close the journal after that.

    Args:
        journal: The journal, which must stay open as long as the pages are served.
        pipelines: The pipelines whose runs can be resumed from their page: `Orchestrator` and
            `Pipeline` objects, by their name in the journal. By default there are none.
        token: A secret of at least 16 characters that every request must have: from the login
            form, as ``?token=…``, or in the header ``Authorization: Bearer …``. By default there
            is none.
        allowed_hosts: Host names, without ports, that requests may use beside those of this
            machine (``localhost``, ``127.0.0.1``, ``[::1]``). By default there are no others, or
            with a token, all.
        grace_s: How many seconds resumed runs may take to clean up when the service ends.

    Raises:
        TypeError: One of ``pipelines`` is no pipeline, or ``token`` is no ``str``.
        ValueError: ``token`` is too short, or ``grace_s`` is negative.
    """
    return _app(Site(journal, pipelines, token, allowed_hosts), grace_s)


def _app(site: Site, grace_s: float) -> Starlette:
    check_number("grace_s", grace_s, 0, unit=" s")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            site.end_streams()
            await site.resumer.close(grace_s)

    pages = Starlette(
        routes=site.routes,
        middleware=site.middleware,
        exception_handlers=site.exception_handlers,
        lifespan=lifespan,
    )
    pages.router.redirect_slashes = False  # an id may end in one
    return pages


async def serve(
    journal: SQLiteJournal | PostgresJournal,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    pipelines: Mapping[str, Resumable] | None = None,
    token: str | None = None,
    allowed_hosts: Iterable[str] | None = None,
    grace_s: float = 30.0,
    on_ready: Callable[[str], object] = lambda url: None,
) -> None:
    """Serve the pages until the calling task is cancelled.

    It handles no signals: the caller decides which of them cancel it. On cancellation it cuts open
    connections within a second, and cancels and awaits the runs that were resumed from a page.

    A viewer that reads nothing costs no page, but only a reverse proxy cuts its connection, and
    those of requests that never arrive.

    Args:
        journal: The journal. It is not closed.
        host: The address to listen at. An address that other machines can reach needs a ``token``.
        port: The port; 0 for any that is free.
        pipelines: As `app` takes them.
        token: As `app` takes it.
        allowed_hosts: As `app` takes them.
        grace_s: As `app` takes it.
        on_ready: Called with the URL of the list of runs, without the token, once the server
            accepts connections.

    Raises:
        TypeError, ValueError: As `app` raises them; ``host``, ``port`` or ``on_ready`` has the
            wrong type; ``port`` is above 65,535; or other machines can reach the address, and there
            is no token.
        OSError: The server can't listen there. The message says why.
        asyncio.CancelledError: The calling task was cancelled. The server has ended.
    """
    if not isinstance(host, str):
        raise TypeError(f"host must be a str, not {type(host).__name__}")
    check_count("port", port, 0, at_most=65_535)
    if not callable(on_ready):
        raise TypeError(f"on_ready must be a function of a URL, not {type(on_ready).__name__}")
    if token is None and not is_loopback(host):
        raise ValueError(
            f"other machines can reach host {host!r}, so it needs a token of at least 16 "
            "characters, token=secrets.token_urlsafe(), or host='127.0.0.1'"
        )
    site = Site(journal, pipelines, token, allowed_hosts)
    pages = _app(site, grace_s)
    try:
        await serve_app(
            pages,
            host,
            port,
            on_ready=on_ready,
            on_end=site.end_streams,
        )
    finally:
        await site.resumer.close(grace_s)
