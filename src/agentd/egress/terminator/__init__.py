"""The process that reads connections: rules of methods and paths, and credentials (ADR 44).

It has certificate keys and credentials, and dials nobody: the relay passes it both ends of each
connection. It may use libraries; it has no file system and makes no socket.
"""
