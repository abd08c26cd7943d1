"""The noun ``network``, by HTTP."""

from collections.abc import Iterable

from agentd.client import arguments
from agentd.client.http.commands import sandbox_path
from agentd.client.http.noun import HttpNoun
from agentd.model.egress import rules_of
from agentd.model.network import ConnectionPage, NetworkBody, NetworkView


class HttpNetwork(HttpNoun):
    def get(self, sandbox: str) -> NetworkView:
        return self._requests.call("GET", f"{sandbox_path(sandbox)}/network", into=NetworkView)

    def set(self, sandbox: str, net: str | Iterable[str]) -> NetworkView:
        path, body = f"{sandbox_path(sandbox)}/network", NetworkBody(rules_of(net))
        return self._requests.call("PUT", path, body, into=NetworkView)

    def cassette(self, sandbox: str) -> bytes:
        with self._requests.open("GET", _cassette(sandbox)) as response:
            return response.read()

    def play(self, sandbox: str, cassette: bytes) -> None:
        headers = {"Content-Type": "application/octet-stream"}
        with self._requests.open("PUT", _cassette(sandbox), body=cassette, headers=headers) as told:
            told.read()

    def connections(self, sandbox: str, after: int = 0) -> ConnectionPage:
        path = f"{sandbox_path(sandbox)}/network/connections"
        query = {"after": arguments.whole(after, "after", 0, arguments.MOST)}
        return self._requests.call("GET", path, query=query, into=ConnectionPage)


def _cassette(sandbox: str) -> str:
    return f"{sandbox_path(sandbox)}/network/cassette"
