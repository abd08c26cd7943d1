"""The door suite: what every door promises, asked over its own wire, of a daemon that is started.

``pytest --pyargs agentd.testing.doors --door MODULE:DRIVER`` runs it; ``docs/doors.md`` tells how.
A ``Driver`` is all that it wants of the door's author: what the door carries, as methods.
"""

from agentd.testing.doors.driver import Driver, Ended, Refusal
from agentd.testing.doors.http import Answer, ask, hang_up

__all__ = ["Answer", "Driver", "Ended", "Refusal", "ask", "hang_up"]
