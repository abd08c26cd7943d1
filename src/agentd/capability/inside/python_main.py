"""Where a context's process begins, once its modules are loaded."""

from agentd.capability.inside.python_engine import choose
from agentd.capability.inside.python_server import KernelServer


def main(path: str) -> None:
    """Serve for ever; where it fails, the client sees the end of the connection."""
    server = KernelServer(path)
    engine = choose(server)
    server.interrupt = engine.interrupt
    server.serve(engine.name, engine.run)
