"""The requests that wait for somebody, as a caller sees them."""

from agentd.daemon.observe.observed import observed
from agentd.daemon.service.noun import Noun
from agentd.model.api import ApprovalView


class DaemonApprovals(Noun):
    """Implements ``model.service.Approvals``."""

    @observed("approvals")
    def list(self) -> tuple[ApprovalView, ...]:
        return tuple(self._parts.approvals.ls(self._who))

    @observed("approval")
    def get(self, id: str) -> ApprovalView:
        return self._parts.approvals.get(self._who, id)

    @observed("decide_approval")
    def decide(self, id: str, *, allow: bool, note: str = "") -> ApprovalView:
        return self._parts.approvals.decide(self._who, id, allow, note)

    @observed("withdraw_approval")
    def withdraw(self, id: str) -> ApprovalView:
        return self._parts.approvals.recall(self._who, id)
