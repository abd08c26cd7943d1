"""The requests that wait for somebody, as a caller sees them."""

from agentd.daemon.admission.approval_pages import ApprovalPlace
from agentd.daemon.observe.observed import observed
from agentd.daemon.service.noun import Noun
from agentd.model.api import ApprovalView


class DaemonApprovals(Noun):
    """Implements ``model.door.DoorApprovals``."""

    @observed("approvals")
    def list(self) -> tuple[ApprovalView, ...]:
        return tuple(self._parts.approvals.ls(self._who))

    @observed("approvals")
    def page(
        self, limit: int, after: tuple[float, str] | None = None
    ) -> tuple[tuple[ApprovalView, ...], tuple[float, str] | None]:
        place = ApprovalPlace() if after is None else ApprovalPlace(after[0] > 0, after[1])
        found, following = self._parts.approvals.page(self._who, place, limit)
        return tuple(found), following and (float(following.has_ended), following.id)

    @observed("approval")
    def get(self, id: str) -> ApprovalView:
        return self._parts.approvals.get(self._who, id)

    @observed("decide_approval")
    def decide(self, id: str, *, allow: bool, note: str = "") -> ApprovalView:
        return self._parts.approvals.decide(self._who, id, allow, note)

    @observed("withdraw_approval")
    def withdraw(self, id: str) -> ApprovalView:
        return self._parts.approvals.recall(self._who, id)
