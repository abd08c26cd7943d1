"""How an execution ended: its record in the audit log, then the receipt that chains to it."""

import contextlib
from typing import TYPE_CHECKING

from agentd.audit import receipt
from agentd.audit.errors import AuditError
from agentd.audit.execution import Execution
from agentd.daemon.admission import facts
from agentd.daemon.admission.admission import Admitted, secrets
from agentd.model.result import Result

if TYPE_CHECKING:
    from agentd.audit.issuing import AtOnce


class Records:
    """Thread-safe."""

    def __init__(self, log: receipt.Log, receipts: "AtOnce") -> None:
        self._log = log
        self._receipts = receipts

    def write(self, admitted: Admitted, execution: Execution) -> str:
        """The receipt's id. The record is on disk when it returns. Raises AuditError."""
        self._receipts.keep(receipt.chain(self._log, execution, secrets(admitted.act)))
        return execution.request

    def interrupted(self, execution: Execution) -> None:
        """Of one that began under a daemon before. Raises AuditError."""
        self._receipts.keep(receipt.chain(self._log, execution))

    def get(self, id_: str) -> bytes | None:
        return self._receipts.get(id_)


class Ending:
    """A command's ``Concluded``: it ends once."""

    def __init__(self, records: Records, admitted: Admitted, place: facts.Ran) -> None:
        self._records = records
        self._admitted = admitted
        self._place = place
        self.request_id = admitted.act.id

    def __call__(self, result: Result, outputs: facts.Digests) -> str:
        return self._records.write(self._admitted, facts.of_result(self._admitted, result, outputs))

    def failed(self, error: BaseException | None) -> None:
        # Whoever is told of the failure is told that first.
        with contextlib.suppress(AuditError):
            self._records.write(self._admitted, facts.of_error(self._admitted, self._place, error))
