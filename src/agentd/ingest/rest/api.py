"""What all of the REST API works with."""

from agentd.ingest.rest.respond import encode, error_answer, error_in_json
from agentd.ingest.web import exchange, websocket
from agentd.ingest.web.door import Door
from agentd.model.answer import Answer
from agentd.model.errors import AgentdError


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
