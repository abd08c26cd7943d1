"""REST's answers in its own words: JSON's keys, where messages name options."""

import msgspec

from agentd.model.api import CallView, ErrorView, ProcessView, ResultView
from agentd.model.errors import AgentdError
from agentd.model.words import call, cause, in_json


def error_in_json(error: AgentdError) -> ErrorView:
    texts = (error.message, error.cause, error.remediation)
    return ErrorView(error.code, *map(in_json, texts))


def value_in_json(value: object) -> object:
    """Return what REST answers, its causes in JSON's words."""
    if isinstance(value, ResultView):
        told = cause(value.cause, in_json)
        return value if told is value.cause else msgspec.structs.replace(value, cause=told)
    if isinstance(value, ProcessView) and value.result is not None:
        return msgspec.structs.replace(value, result=value_in_json(value.result))
    if isinstance(value, CallView):
        return call(value, in_json)
    # Of one kind, so that the first tells: listings of files are long.
    if isinstance(value, list | tuple) and value and isinstance(value[0], ProcessView):
        return [value_in_json(item) for item in value]
    return value
