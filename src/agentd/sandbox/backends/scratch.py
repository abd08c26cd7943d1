"""Removing what a sandbox left in its scratch directory."""

from agentd.guest.zygote.scratch import remove

__all__ = ["remove"]
