"""Control groups: memory, process and CPU limits of a whole sandbox; v2, or v1 where that is used.

``detect()`` finds the hierarchy, ``Hierarchy.create`` makes a group, the group counts and kills.
"""

from agentd.linux.cgroup.detect import detect
from agentd.linux.cgroup.group import Group
from agentd.linux.cgroup.hierarchy import Hierarchy
from agentd.linux.cgroup.reopen import CountedGroup, reopen

__all__ = ["CountedGroup", "Group", "Hierarchy", "detect", "reopen"]
