"""The client's end of REST and WebSocket: ``docs/api.md``."""
