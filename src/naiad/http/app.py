"""The app: routes from the dialects' tables and the common pages, behind the origin guard."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from naiad.config import Config
from naiad.dialects import registry
from naiad.dialects.base import Access, Dialect, Operation
from naiad.errors import MethodNotAllowed, NotFound
from naiad.http.auth import Door
from naiad.http.endpoint import GenerationEndpoint, House, QueryEndpoint
from naiad.http.exchange import Exchange
from naiad.http.origin import OriginGuard, check_origins, host_rule
from naiad.http.pages import PAGES, Page
from naiad.http.paths import PlainPaths, meant_by
from naiad.http.reference import reference_pages
from naiad.service.service import Service

ForPath = Callable[[str], Dialect]
Table = dict[str, dict[str, ASGIApp]]  # path -> method -> what answers


def build_app(
    service: Service,
    config: Config,
    dialects: Sequence[Dialect] = registry.DIALECTS,
    for_path: ForPath = registry.for_path,
) -> ASGIApp:
    """The ASGI app. `for_path` picks the dialect of errors that no route answers.

    Raises ValueError for a route without an access level, without exactly one of parse and
    handle, or declared twice; ConfigError for a bad key, host or origin in the config.
    """
    house = House(
        service=service,
        door=Door(config.api_key, config.admin_key),
        max_body_bytes=config.max_body_bytes,
        heartbeat_s=config.heartbeat_s,
        stalled_s=config.stalled_s,
        ignored=set(),
    )
    table: Table = {}
    for path, (access, show) in {**PAGES, **reference_pages(dialects)}.items():
        _add(table, "GET", path, access, Page(service, for_path(path), show))
    for dialect in dialects:
        for operation in dialect.operations:
            endpoint = _endpoint(house, dialect, operation)
            _add(table, operation.method, operation.path, operation.access, endpoint)
    routes = [Route(path, MethodSwitch(methods, for_path)) for path, methods in table.items()]
    router = Router(routes, redirect_slashes=False, default=Nowhere(for_path, table))
    hosts = host_rule(config.host, config.allow_host)
    return PlainPaths(OriginGuard(router, hosts, check_origins(config.allow_origin), for_path))


class MethodSwitch:
    """All methods of one path; HEAD is answered as GET, others that are missing with 405."""

    def __init__(self, methods: dict[str, ASGIApp], for_path: ForPath) -> None:
        self._methods = methods
        if "GET" in methods:
            self._methods = {"HEAD": methods["GET"], **methods}
        self._for_path = for_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._methods.get(scope["method"])
        if endpoint is not None:
            await endpoint(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self._for_path(scope["path"]))
        allow = ", ".join(sorted(self._methods))
        await exchange.answer_error(
            MethodNotAllowed(f"This path answers {allow} only.", allow=allow)
        )


class Nowhere:
    """Answers paths that are no route; routes: those that may have been meant."""

    def __init__(self, for_path: ForPath, routes: Collection[str]) -> None:
        self._for_path = for_path
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        meant = meant_by(scope["path"], self._routes)
        exchange = Exchange(scope, receive, send, self._for_path(meant or scope["path"]))
        hint = f"; {meant} is a path of this server" if meant else ""
        await exchange.answer_error(NotFound(f"There is nothing at this path{hint}."))


def _endpoint(house: House, dialect: Dialect, operation: Operation) -> ASGIApp:
    ways = (operation.parse, operation.plan, operation.handle)
    if sum(way is not None for way in ways) != 1:
        where = f"{operation.method} {operation.path}"
        raise ValueError(f"{where} needs exactly one of parse, plan and handle")
    if operation.handle is not None:
        return QueryEndpoint(house, dialect, operation, operation.handle)
    return GenerationEndpoint(house, dialect, operation)


def _add(table: Table, method: str, path: str, access: object, endpoint: ASGIApp) -> None:
    if not isinstance(access, Access):
        raise ValueError(f"{method} {path} declares no access level")
    methods = table.setdefault(path, {})
    if method in methods:
        raise ValueError(f"{method} {path} is declared twice")
    methods[method] = endpoint
