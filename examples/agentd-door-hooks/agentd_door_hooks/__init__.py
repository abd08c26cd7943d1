"""POST /hooks/SANDBOX: ./hook in that sandbox reads what is sent; what it writes is the answer."""

import base64

from agentd.ingest.web.door import Door, Mount
from agentd.ingest.web.exchange import Exchange
from agentd.ingest.web.routes import Routes
from agentd.ingest.web.status import headers_of, status_of
from agentd.ingest.web.web import Web
from agentd.model.answer import Answer
from agentd.model.api import ExecBody
from agentd.model.errors import AgentdError
from agentd.model.gatekeeper import Gatekeeper

MAX_BYTES = 1 << 20
TEXT = {"content-type": "text/plain; charset=utf-8"}


class Hooks(Door):
    """Errors are plain text, a line each of code, message, cause and remediation."""

    def error(self, error: AgentdError) -> Answer:
        text = "".join(f"{name}: {value}\n" for name, value in error.as_dict().items())
        return Answer(status_of(error), text.encode(), {**TEXT, **headers_of(error)})

    async def run(self, exchange: Exchange["Hooks"]) -> None:
        service = await exchange.authenticate()  # before anything of the body is read
        sent = await exchange.body(MAX_BYTES)
        command = ExecBody(
            cmd=("./hook",),
            stdin=base64.b64encode(sent).decode(),
            stdin_encoding="base64",
            timeout="30s",
        )
        # The service blocks: each of its calls has a thread, from the room of its kind.
        result = await self.web.threads.waits.run(
            service.commands.exec, exchange.path["sandbox"], command
        )
        written = result.stdout.encode()
        if result.encoding == "base64":
            written = base64.b64decode(written)
        status = 200 if result.status == "ok" else 502
        await exchange.answer(Answer(status, written, TEXT))


def mount(web: Web, gatekeeper: Gatekeeper) -> Mount:
    door = Hooks(web, gatekeeper)
    routes = Routes(door, fix="POST /hooks/SANDBOX is all there is")
    routes.add("/hooks/{sandbox}", {"POST": door.run})
    return Mount(door, routes, paths=("/hooks",))
