"""REST's answers in its own words: JSON's keys, where messages name options."""

import msgspec

from agentd.model.api import CallView, ErrorView, ProcessView, ResultView
from agentd.model.errors import AgentdError
from agentd.model.words import cause, in_json


def error_in_json(error: AgentdError) -> ErrorView:
    texts = (error.message, error.cause, error.remediation)
    return ErrorView(error.code, *map(in_json, texts))


def value_in_json(value: object) -> object:
    """What REST answers, its causes in JSON's words."""
    if isinstance(value, ResultView):
        told = cause(value.cause, in_json)
        return value if told is value.cause else msgspec.structs.replace(value, cause=told)
    if isinstance(value, ProcessView) and value.result is not None:
        return msgspec.structs.replace(value, result=value_in_json(value.result))
    if isinstance(value, CallView):
        why = value.value.get("cause")
        own = {**value.value, "cause": _texts(why)} if isinstance(why, dict) else value.value
        return msgspec.structs.replace(value, cause=cause(value.cause, in_json), value=own)
    # Of one kind, so that the first tells: listings of files are long.
    if isinstance(value, list | tuple) and value and isinstance(value[0], ProcessView):
        return [value_in_json(item) for item in value]
    return value


def _texts(fields: dict[str, object]) -> dict[str, object]:
    return {k: in_json(v) if isinstance(v, str) else v for k, v in fields.items()}
