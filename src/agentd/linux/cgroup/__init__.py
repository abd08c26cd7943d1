"""Control groups: memory, process and CPU limits of a whole sandbox; v2, or v1 where that is used.

``detect()`` finds the hierarchy, of which ``scope.enter()`` has an ordinary user's systemd give us
a part, ``Hierarchy.create`` makes a group, the group counts and kills.
"""

from agentd.linux.cgroup import scope
from agentd.linux.cgroup.detect import detect
from agentd.linux.cgroup.group import Group
from agentd.linux.cgroup.hierarchy import LIMITING, Hierarchy
from agentd.linux.cgroup.reopen import CountedGroup, reopen

__all__ = ["LIMITING", "CountedGroup", "Group", "Hierarchy", "detect", "reopen", "scope"]
