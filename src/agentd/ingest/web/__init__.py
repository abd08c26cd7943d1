"""HTTP machinery for any door: listeners, connections, limits, requests and answers, threads.

listener -> connection (protocol.py) -> the door's application -> exchange -> a thread
"""
