"""The control endpoint: read and replace the plans of faulty ports over HTTP, as JSON.

``openapi.json``, beside this file, describes each request and its responses. A page of another
site cannot make a browser use this endpoint: requests that a browser sends for a page, or that
name another host, are refused, and no response allows another origin to read it (CORS).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import files
from typing import Any, Final
from urllib.parse import unquote

from twisted.internet.interfaces import IReactorTime
from twisted.web.http import Request
from twisted.web.resource import Resource

from echod.daemon.faultlog import log_counts, log_plan
from echod.daemon.webguard import ABSOLUTE, GuardedSite, is_local_host, respond
from echod.faultgrammar import parse_plan
from echod.faultplan import Plan
from echod.faults import Faults

MAX_BODY: Final = 64 * 1024
"""Bytes: the length of the longest request body."""

JSON: Final = "application/json"

IS_JSON: Final = re.compile(rb'application/json\s*(;\s*charset="?utf-8"?\s*)?', re.IGNORECASE)


class Problem(Exception):
    """A request cannot be served.

    :ivar status: of the response.
    :ivar headers: of the response.
    """

    def __init__(self, status: int, why: str, **headers: str) -> None:
        super().__init__(why)
        self.status = status
        self.headers = headers


class Control(Resource):
    """The root resource.

    :param ports: the faulty ports. A path has the position of one, from 0, or its name.
    :param clock: the clock of their faults.
    """

    isLeaf = True

    def __init__(self, ports: Sequence[Faults], clock: IReactorTime) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ports = ports
        self._clock = clock
        # Read at the start, before twistd changes the root directory.
        self._description = json.loads((files(__package__) / "openapi.json").read_text())

    def render(self, request: Any) -> int:
        """Answer a request; an error has one line that says why."""
        try:
            check_sender(request)
            answer = self._method(request)()
        except Problem as problem:
            request.setResponseCode(problem.status)
            for name, value in problem.headers.items():
                request.setHeader(name.encode(), value.encode())
            answer = {"error": str(problem)}
        request.setHeader(b"Cross-Origin-Resource-Policy", b"same-origin")
        return respond(request, JSON, json.dumps(answer, indent=2).encode() + b"\n")

    def _method(self, request: Any) -> Callable[[], object]:
        """Return the function that answers ``request``."""
        path = ABSOLUTE.sub(b"/", request.path).decode("latin-1")
        methods: dict[str, Callable[[], object]]
        match [unquote(part) for part in path.split("/")[1:]]:
            case [""] | ["faults"]:
                methods = {"GET": lambda: {"ports": [state_of(each) for each in self._ports]}}
            case ["openapi.json"]:
                methods = {"GET": lambda: self._description}
            case ["faults", name]:
                port = self._port(name)
                replace_plan = partial(self._replace, port, request)
                methods = {"GET": partial(state_of, port), "PUT": replace_plan}
            case ["faults", name, "firings"]:
                methods = {"GET": partial(firings_of, self._port(name))}
            case ["faults", name, "reset"]:
                methods = {"POST": partial(reset, self._port(name))}
            case _:
                raise Problem(404, "there is no such path: GET /openapi.json lists them")
        method = request.method.decode("latin-1").replace("HEAD", "GET")
        if method not in methods:
            allowed = ", ".join(methods).replace("GET", "GET, HEAD")
            raise Problem(405, f"the method must be one of {allowed}", Allow=allowed)
        if method != "GET" and not is_json(request):
            raise Problem(415, f"the header Content-Type must be {JSON}")
        return methods[method]

    def _port(self, name: str) -> Faults:
        for index, port in enumerate(self._ports):
            if name in (str(index), port.port):
                return port
        raise Problem(404, "there is no such faulty port: GET /faults lists them")

    def _replace(self, port: Faults, request: Any) -> dict[str, Any]:
        plan, counted = plan_of(request.content.read()), port.rules
        try:
            port.set(plan, self._clock.seconds())
        except ValueError as error:
            raise Problem(400, str(error)) from None
        log_counts(port.port, counted)
        log_plan(port)
        return state_of(port)


class ControlSite(GuardedSite):
    """A site that takes JSON bodies up to :data:`MAX_BODY`, which Twisted keeps in memory."""

    def refuse_body(self, request: Request, length: int | None) -> bytes:
        """Return the status with which to refuse a body; empty: read it.

        Chunked bodies are refused, because their length is not known (RFC 9112 6.3). Twisted would
        parse a form of any other type before the resource sees it.
        """
        if length is None or request.requestHeaders.hasHeader(b"Transfer-Encoding"):
            return b"411 Length Required"
        if length > MAX_BODY:
            return b"413 Content Too Large"
        return b"" if length == 0 or is_json(request) else b"415 Unsupported Media Type"


def check_sender(request: Request) -> None:
    """Raise :class:`Problem` for a request that a page of another site can have caused."""
    headers = request.requestHeaders
    if len(headers.getRawHeaders(b"Host", [])) != 1:
        raise Problem(400, "there must be one Host header")  # RFC 9112 3.2
    if not is_local_host(request):
        raise Problem(421, "the Host header must be localhost or an IP address")
    sites = headers.getRawHeaders(b"Sec-Fetch-Site", [])  # W3C Fetch Metadata Request Headers
    if headers.hasHeader(b"Origin") or any(site != b"none" for site in sites):
        raise Problem(403, "a web page has no access")


def is_json(request: Request) -> bool:
    """Return whether the body is declared as JSON, in UTF-8, and is not compressed."""
    types = request.requestHeaders.getRawHeaders(b"Content-Type", [])
    encoded = request.requestHeaders.hasHeader(b"Content-Encoding")
    return len(types) == 1 and bool(IS_JSON.fullmatch(types[0])) and not encoded


def plan_of(body: bytes) -> Plan:
    """Return the plan in ``body``: an object with ``plan``, as text, and optionally ``seed``.

    An empty text has no rules; on the command line it would be a mistake.

    :raises Problem: for anything else.
    """
    try:
        values = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"the body is not JSON: {error}") from None
    if not isinstance(values, dict) or not {"plan"} <= values.keys() <= {"plan", "seed"}:
        raise Problem(400, 'the body must be {"plan": "RULES"} or {"plan": "RULES", "seed": N}')
    if not isinstance(values["plan"], str):
        raise Problem(400, "plan must be a string")
    try:
        plan = parse_plan(values["plan"]) if values["plan"] else Plan()
        return replace(plan, seed=values["seed"]) if "seed" in values else plan
    except (TypeError, ValueError) as error:
        raise Problem(400, str(error)) from None


def state_of(port: Faults) -> dict[str, Any]:
    """Return the plan of a port, and how often each of its rules has fired."""
    return {
        "name": port.port,
        "serves": port.serves,
        "plan": str(port.plan),
        "seed": port.plan.seed,
        "number": port.number,
        "rules": [
            {"rule": each.text, "fault": each.name, "fired": each.fired} for each in port.rules
        ],
    }


def firings_of(port: Faults) -> dict[str, Any]:
    """Return the latest firings of a port."""
    return {
        "firings": [
            {
                "rule": fired.rule,
                "connection": fired.connection,
                "offset": fired.offset,
                "seconds": seconds,
            }
            for fired, seconds in port.firings
        ]
    }


def reset(port: Faults) -> dict[str, Any]:
    """Log the counts of a port, set them to 0, forget its firings, and return its state."""
    log_counts(port.port, port.rules)
    port.reset()
    return state_of(port)
