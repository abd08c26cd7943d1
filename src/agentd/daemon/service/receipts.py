"""The receipts of what a caller had done."""

from agentd.audit.receipt import peek
from agentd.daemon.observe.observed import observed
from agentd.daemon.service.noun import Noun
from agentd.model.errors import NotFound


class DaemonReceipts(Noun):
    """Implements ``model.service.Receipts``."""

    @observed("receipt")
    def get(self, id: str) -> bytes:
        self._who.require("read")
        found = self._parts.control.records.get(id)
        if found is None or not self._who.owns(peek(found).predicate.execution.principal):
            raise NotFound(
                f"there is no receipt {id[:64]!r}",
                remediation="its id is the request's; the oldest are dropped",
            )
        return found

    @observed("receipt_key")
    def key(self) -> str:
        self._who.require("read")
        return self._parts.control.key.public_pem().decode()
