"""The REST door: values and errors as JSON by msgspec, the status by the error's code.

In REST's own words: JSON's keys, where messages name options.
"""

import msgspec

from agentd.ingest.web import exchange, websocket
from agentd.ingest.web.door import Door
from agentd.ingest.web.status import headers_of, status_of
from agentd.model.answer import Answer
from agentd.model.api import CallView, ErrorView, ProcessView, ResultView
from agentd.model.characters import without_surrogates
from agentd.model.errors import AgentdError
from agentd.model.words import call, cause, in_json

JSON = "application/json"
_encode = msgspec.json.Encoder().encode


class Reply(msgspec.Struct, frozen=True):
    """A value with another status than its operation's."""

    status: int
    value: object
    headers: dict[str, str] = {}


def answer(value: object, status: int = 200) -> Answer:
    headers: dict[str, str] = {}
    if isinstance(value, Reply):
        status, headers, value = value.status, value.headers, value.value
    if value is None:
        return Answer(204)
    return Answer(status, encode(value), {"content-type": JSON, **headers})


def encode(value: object) -> bytes:
    """Write JSON, in its own words. A lone surrogate (a name that is no UTF-8) becomes U+FFFD."""
    value = _value_in_json(value)
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _encode(_printable(msgspec.to_builtins(value)))


def error_in_json(error: AgentdError) -> ErrorView:
    texts = (error.message, error.cause, error.remediation)
    return ErrorView(error.code, *map(in_json, texts))


def _value_in_json(value: object) -> object:
    """Return what REST answers, its causes in JSON's words."""
    if isinstance(value, ResultView):
        told = cause(value.cause, in_json)
        return value if told is value.cause else msgspec.structs.replace(value, cause=told)
    if isinstance(value, ProcessView) and value.result is not None:
        return msgspec.structs.replace(value, result=_value_in_json(value.result))
    if isinstance(value, CallView):
        return call(value, in_json)
    # Of one kind, so that the first tells: listings of files are long.
    if isinstance(value, list | tuple) and value and isinstance(value[0], ProcessView):
        return [_value_in_json(item) for item in value]
    return value


def _printable(value: object) -> object:
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    return value


def error_answer(error: AgentdError) -> Answer:
    headers = {"content-type": JSON, **headers_of(error)}
    return Answer(status_of(error), encode(error_in_json(error)), headers)


def as_sent(answer: Answer) -> Answer:
    """Add what a client is told of an answer that an earlier request got."""
    if not answer.replayed:
        return answer
    headers = {**answer.headers, "idempotency-replayed": "true"}
    return msgspec.structs.replace(answer, headers=headers)


class Api(Door):
    """The REST door: its errors are JSON of four fields."""

    def error(self, error: AgentdError) -> Answer:
        return error_answer(error)

    def message(self, error: AgentdError) -> str:
        return event("error", error=error_in_json(error))


Exchange = exchange.Exchange[Api]
Socket = websocket.Socket[Api]


def event(name: str, **fields: object) -> str:
    """Make a text message of a WebSocket."""
    return encode({"event": name, **fields}).decode()
