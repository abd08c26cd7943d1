"""Scripts that run in the sandbox: standard library only, Python 3.9 and later, imported by nobody.

Each reads one JSON object from its stdin and writes one to its stdout; ``capability/script.py`` is
the other half. The files beside ``python_client`` that begin with ``python_`` are parts
of it, which it is sent along.
"""
