"""How strong a wall is: an ordered scale."""

from enum import IntEnum

from agentd.model.errors import InvalidInput


class IsolationLevel(IntEnum):
    NONE = 0
    PROCESS = 1
    NAMESPACE = 2
    USERSPACE_KERNEL = 3
    MICROVM = 4

    def __init__(self, _: int) -> None:
        #: The name users type and read: ``userspace-kernel``.
        self.label = self.name.lower().replace("_", "-")

    @classmethod
    def parse(cls, text: str) -> "IsolationLevel":
        for level in cls:
            if level.label == text:
                return level
        names = ", ".join(level.label for level in cls)
        raise InvalidInput(f"unknown isolation level {text!r}", remediation=f"use one of: {names}")
