"""Secrets that a daemon keeps, by HTTP."""

from agentd.client.http.client import segment
from agentd.client.http.noun import HttpNoun
from agentd.model.kept_secret import SecretBody, SecretView
from agentd.model.secret import check_secret_name, check_value


class HttpSecrets(HttpNoun):
    def set(self, name: str, value: str) -> SecretView:
        check_value(check_secret_name(name), value)  # said without sending it
        path = f"/v1/secrets/{segment(name)}"
        return self._requests.call("PUT", path, SecretBody(value), into=SecretView)

    def list(self) -> tuple[SecretView, ...]:
        found = self._requests.pages("/v1/secrets", SecretView)
        return tuple(sorted(found, key=lambda view: view.name))

    def delete(self, name: str) -> None:
        self._requests.call("DELETE", f"/v1/secrets/{segment(name)}")
