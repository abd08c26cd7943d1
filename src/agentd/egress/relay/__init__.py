"""The process that accepts what sandboxes dial, and dials for them what their rules allow.

It parses what sandboxes and the network send, so it has nothing: no file system, no capability,
few system calls. Standard library, ``agentd.linux`` and the pure parts of ``agentd.egress``.
"""
