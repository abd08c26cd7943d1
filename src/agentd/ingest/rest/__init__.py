"""The REST door, over HTTP/1.1, server-sent events and WebSocket. ``docs/api.md`` is the contract.

route (app.py) -> operation -> a thread -> the service
"""
