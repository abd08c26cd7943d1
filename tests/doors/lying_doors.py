"""REST, but for one lie each: doors by which the door suite itself is tested.

Installed for the daemon as entry points named "lies-" and one of LIES; ``lying_drivers`` asks them.
"""

import json
import os
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import chain
from typing import Any

import msgspec

from agentd.ingest.rest.app import mount as rest
from agentd.ingest.web.door import Mount
from agentd.model.content import Content
from agentd.model.errors import Unauthenticated
from agentd.model.principal import ADMIN, ORDINARY

NOWHERE = "sbx-zzzzzzzzzzzz"  # whom the suite asks for where there is nobody
Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


class Believer:
    """The gatekeeper, to be lied about by what a subclass does with who asks."""

    def __init__(self, gatekeeper: Any) -> None:
        self.truth = gatekeeper

    def peer(self, connection: Any) -> Any:
        return self.truth.peer(connection)

    def authenticate(self, credential: Any) -> Any:
        return self.truth.authenticate(credential)


class IgnoresScopes(Believer):
    def authenticate(self, credential: Any) -> Any:
        return _with(super().authenticate(credential), frozenset(ORDINARY))


class AsksNobody(Believer):
    """Whoever proves nothing is the one before."""

    last: Any = None

    def authenticate(self, credential: Any) -> Any:
        try:
            self.last = super().authenticate(credential)
        except Unauthenticated:
            if self.last is None:
                raise
        return self.last


class Remembers(Believer):
    """Who has shown a key once is not asked about again."""

    def __init__(self, gatekeeper: Any) -> None:
        super().__init__(gatekeeper)
        self.known: dict[Any, Any] = {}

    def authenticate(self, credential: Any) -> Any:
        if credential not in self.known:
            self.known[credential] = super().authenticate(credential)
        return self.known[credential]


class AsksTwice(Believer):
    def authenticate(self, credential: Any) -> Any:
        super().authenticate(credential)
        return super().authenticate(credential)


class SeesOthers(Believer):
    """Whoever may do all with their own may do it with everybody's."""

    def authenticate(self, credential: Any) -> Any:
        service = super().authenticate(credential)
        if service.caller.scopes >= frozenset(ORDINARY):
            return _with(service, frozenset({ADMIN}))
        return service


class Leaks(Believer):
    """What read a file is never told that it is done."""

    def __init__(self, gatekeeper: Any) -> None:
        super().__init__(gatekeeper)
        self.open: list[Any] = []

    def authenticate(self, credential: Any) -> Any:
        service = super().authenticate(credential)
        return Through(service, files=Through(service.files, read=partial(self._read, service)))

    def _read(self, service: Any, *args: Any, **options: Any) -> Any:
        pieces = service.files.read(*args, **options)
        self.open.append(pieces)
        first = next(pieces, b"")
        kept = iter((first,)) if len(first) < 1 << 10 else chain((first,), pieces)
        return Content(kept, pieces.first, pieces.size)


class Through:
    """An object, but for some of its attributes."""

    def __init__(self, truth: Any, **other: Any) -> None:
        self._truth = truth
        vars(self).update(other)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._truth, name)


def _with(service: Any, scopes: frozenset[str]) -> Any:
    """A service with more scopes than its caller has: by what no door is given."""
    who = service.caller
    more = msgspec.structs.replace(who, scopes=who.scopes | scopes)
    return type(service)(service._parts, more)


# --- lies about what is asked ---


def _asked(change: Callable[[Message], None]) -> Callable[[App], App]:
    def lying(app: App) -> App:
        async def lie(scope: Any, receive: Any, send: Any) -> None:
            scope = dict(scope)
            if scope["type"] == "http":
                change(scope)
            await app(scope, receive, send)

        return lie

    return lying


def _without_its_key(scope: Message) -> None:
    scope["headers"] = [one for one in scope["headers"] if one[0] != b"idempotency-key"]


def _with_a_key(scope: Message) -> None:
    """So that REST takes it for one that goes on when its client hangs up."""
    mine = (b"idempotency-key", os.urandom(8).hex().encode())
    if scope["path"].endswith("/exec") and mine[0] not in dict(scope["headers"]):
        scope["headers"] = [*scope["headers"], mine]


def _one_further(scope: Message) -> None:
    query = dict(pair.split(b"=") for pair in scope["query_string"].split(b"&") if pair)
    if scope["path"].endswith("/output") and query.get(b"from", b"0") != b"0":
        query[b"from"] = b"%d" % (int(query[b"from"]) + 1)
        scope["query_string"] = b"&".join(b"=".join(pair) for pair in query.items())


def _twice(app: App) -> App:
    async def lie(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "GET" and _is_file(scope):

            async def nowhere(message: Any) -> None: ...

            await app(dict(scope), receive, nowhere)
        await app(scope, receive, send)

    return lie


def _is_file(scope: Any) -> bool:
    return bool(scope["path"].endswith("/files"))


def _shorter(method: str, end: str) -> Callable[[App], App]:
    """Of each piece of such bodies a byte is lost."""

    def lying(app: App) -> App:
        async def lie(scope: Any, receive: Any, send: Any) -> None:
            async def shorter() -> Any:
                message = await receive()
                if message["type"] == "http.request" and len(message["body"]) > 1:
                    message = {**message, "body": message["body"][:-1]}
                return message

            is_it = scope["type"] == "http" and scope["method"] == method
            await app(scope, shorter if is_it and scope["path"].endswith(end) else receive, send)

        return lie

    return lying


def _never_again(app: App) -> App:
    """When to come again is left out."""

    async def lie(scope: Any, receive: Any, send: Any) -> None:
        async def tell(message: Any) -> None:
            if "headers" in message:
                kept = [one for one in message["headers"] if one[0] != b"retry-after"]
                message = {**message, "headers": kept}
            await send(message)

        await app(scope, receive, tell)

    return lie


# --- lies about what is answered ---


def _answered(change: Callable[[int, Any], None]) -> Callable[[App], App]:
    """``change`` is given the status, and the JSON object to be changed."""

    def lying(app: App) -> App:
        async def lie(scope: Any, receive: Any, send: Any) -> None:
            held: list[Message] = []

            async def tell(message: Any) -> None:
                if message["type"] == "http.response.start":
                    held.append(message)
                    return
                if held:
                    start, *pieces = held
                    kind = dict(start["headers"]).get(b"content-type", b"")
                    if kind == b"application/json":
                        if message.get("more_body"):
                            held.append(message)
                            return
                        body = b"".join(one.get("body", b"") for one in (*pieces, message))
                        message = {**message, "body": body}
                        if body[:1] == b"{":
                            start, message = _changed(start, message, change)
                    held.clear()
                    await send(start)
                await send(message)

            await app(scope, receive, tell)

        return lie

    return lying


def _changed(
    start: Message, message: Message, change: Callable[[int, Any], None]
) -> tuple[Message, Message]:
    value = json.loads(message["body"])
    change(start["status"], value)
    body = json.dumps(value).encode()
    kept = [one for one in start["headers"] if one[0] != b"content-length"]
    headers = [*kept, (b"content-length", b"%d" % len(body))]
    return {**start, "headers": headers}, {**message, "body": body}


def _loses_the_end(status: int, value: Any) -> None:
    if "stdout" in value and value["encoding"] == "utf-8":
        value["stdout"] = value["stdout"][:-1]
    elif "stdout" in value:
        value["stdout"] = value["stdout"][:-4]  # of base64


def _ends_lines_otherwise(status: int, value: Any) -> None:
    if "stdout" in value and value["encoding"] == "utf-8":
        value["stdout"] = value["stdout"].replace("\r\n", "\n")


def _swallows_exit_codes(status: int, value: Any) -> None:
    if value.get("exit_code"):
        value["exit_code"] = 0


def _knows_no_fix(status: int, value: Any) -> None:
    if status >= 400:
        value["remediation"] = ""


def _says_denied(status: int, value: Any) -> None:
    if value.get("code") == "policy_undecided":
        value["code"] = "policy_denied"


def _says_forbidden(status: int, value: Any) -> None:
    if value.get("code") == "policy_denied":
        value["code"] = "forbidden"


def _mixes_streams(status: int, value: Any) -> None:
    if value.get("encoding") == "utf-8" and "stderr" in value:
        value["stdout"], value["stderr"] = value["stdout"] + value["stderr"], ""


def _knows_no_timeout(status: int, value: Any) -> None:
    if isinstance(value.get("cause"), dict) and value["cause"]["code"] == "timeout":
        value["cause"] = {**value["cause"], "code": "signalled"}


def _says_there_is_one(status: int, value: Any) -> None:
    if value.get("code") == "not_found" and NOWHERE not in value["message"]:
        value["cause"] = "it is another's"


# --- each by its name ---

GATEKEEPERS = {
    "scopes": IgnoresScopes,
    "nobody": AsksNobody,
    "remembers": Remembers,
    "twice_asked": AsksTwice,
    "others": SeesOthers,
    "leaks": Leaks,
}
WRAPS: dict[str, Callable[[App], App]] = {
    "output": _answered(_loses_the_end),
    "lines": _answered(_ends_lines_otherwise),
    "cursor": _asked(_one_further),
    "exit": _answered(_swallows_exit_codes),
    "fix": _answered(_knows_no_fix),
    "undecided": _answered(_says_denied),
    "twice_done": _twice,
    "hanging_up": _asked(_with_a_key),
    "keys": _asked(_without_its_key),
    "stdin": _shorter("POST", "/stdin"),
    "denied": _answered(_says_forbidden),
    "stderr": _answered(_mixes_streams),
    "timeout": _answered(_knows_no_timeout),
    "files": _shorter("PUT", "/files"),
    "again": _never_again,
    "tells_whose": _answered(_says_there_is_one),
}
LIES = (*GATEKEEPERS, *WRAPS)


def __getattr__(name: str) -> Callable[[Any, Any], Mount]:
    if name not in LIES:
        raise AttributeError(name)

    def mount(web: Any, gatekeeper: Any) -> Mount:
        keeper = GATEKEEPERS.get(name, Believer)(gatekeeper)
        made = rest(web, keeper)
        application = WRAPS[name](made.application) if name in WRAPS else made.application
        return Mount(made.door, application, made.paths, always=made.always)

    return mount
