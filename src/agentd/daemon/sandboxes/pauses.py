"""Sandboxes that stand still, and what their agents know of their leases."""

import contextlib
from typing import TYPE_CHECKING

from agentd.daemon.sandboxes.adoption import GRACE_SECONDS
from agentd.model.errors import AgentdError
from agentd.model.events import EventKind

if TYPE_CHECKING:
    from agentd.daemon import events
    from agentd.daemon.pipeline import Pipeline
    from agentd.daemon.sandboxes.live import Live


class Pauses:
    """The part of ``Sandboxes`` that has them stand still and go on."""

    _pipeline: "Pipeline"
    _publish: "events.Publish"

    def _change(self, live: "Live", **fields: object) -> None:
        raise NotImplementedError

    def pause(self, live: "Live") -> None:
        live.require_running("pause it")
        tell_agent(live, None)  # its clock goes on where it is a process: ours ends it
        try:
            self._pipeline.manager.pause(live.handle)
        except BaseException:
            tell_agent(live, live.left)
            raise
        self._change(live, state=str(live.handle.state))
        self._publish(EventKind.PAUSED, live.record.principal, live.id)

    def resume(self, live: "Live") -> None:
        self._pipeline.manager.resume(live.handle)
        tell_agent(live, live.left)
        self._change(live, state=str(live.handle.state))
        self._publish(EventKind.RESUMED, live.record.principal, live.id)


def tell_agent(live: "Live", seconds: float | None) -> None:
    """Its own lease; none, for None. One of protocol v1 has none; a paused one is told later."""
    with contextlib.suppress(AgentdError):
        ms = None if seconds is None else agents(seconds)
        live.handle.guest.call("sys.lease", ms=ms)


def agents(seconds: float) -> int:
    """The agent's own lease, the last of three, in milliseconds."""
    return int((seconds + 2 * GRACE_SECONDS) * 1000)
