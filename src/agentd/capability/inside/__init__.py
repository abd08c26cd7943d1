"""Scripts that run in the sandbox: standard library only, Python 3.9 and later.

Each reads one JSON object from its stdin and writes one to its stdout; ``capability/script.py`` is
the other half. Nobody but each other imports them: ``capability/bundle.py`` sends a script with the
parts that it names by ``from agentd.capability.inside.PART import``. The files beside
``python_client`` that begin with ``python_`` are parts of it, and sent along with it.
"""
