"""REST over HTTP/1.1, server-sent events and WebSocket. ``docs/api.md`` is the contract.

listener -> connection (protocol.py) -> route (app.py) -> exchange -> a thread -> the service
"""
