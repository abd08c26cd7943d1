"""Jupyter's kernel behind the same socket: a process of its own below this one."""

import os
import re
import signal
import sys
import time
from typing import Any

from agentd.capability.inside.python_bundle import bounded, clean
from agentd.capability.inside.python_server import KernelServer

START_TIMEOUT = 60.0
# Its pipe for forked children's output is a TCP socket, and libzmq aborts where it cannot ask for
# the network's interfaces. Their output is caught from their descriptors all the same.
_LAUNCH = """\
import sys
sys.path[:] = [place for place in sys.path if place]
from ipykernel import iostream, kernelapp
class IOPubThread(iostream.IOPubThread):
    def __init__(self, socket, pipe=False, **more):
        super().__init__(socket, pipe=False, **more)
kernelapp.IOPubThread = IOPubThread
sys.path.insert(0, "")
kernelapp.launch_new_instance()
"""
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_MAX_TRACEBACK = 64 << 10


class JupyterEngine:
    name = "ipykernel"

    def __init__(self, server: KernelServer) -> None:
        """Raises whatever Jupyter raises where it does not come up."""
        import subprocess

        from jupyter_client.blocking.client import BlockingKernelClient
        from jupyter_client.connect import write_connection_file

        self._server = server
        self._answer: dict[str, Any] = {}
        # Sockets in the private directory of ours: no port that others could connect to.
        place = os.path.join(os.path.dirname(server.path), f"jupyter-{os.getpid()}")
        key = os.urandom(32).hex().encode()
        path, _ = write_connection_file(f"{place}.json", transport="ipc", ip=place, key=key)
        # In our process group: it ends with us, and we with it.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, "-f", path],
            # It ends with its parent, and does not tell how to connect to it.
            env={**os.environ, "JPY_PARENT_PID": str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=server.writers[0],
            stderr=server.writers[1],
        )
        self._ready = False
        signal.signal(signal.SIGCHLD, self._on_child)
        self._client: Any = BlockingKernelClient()
        self._client.load_connection_file(path)
        self._client.start_channels()
        try:
            self._wait(time.monotonic() + START_TIMEOUT)
        except BaseException:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._process.kill()
            self._process.wait()
            self._client.stop_channels()
            raise
        self._ready = True

    def _wait(self, end: float) -> None:
        """A kernel that is slow to start misses heartbeats, and its client calls that its death."""
        while True:
            try:
                self._client.wait_for_ready(timeout=START_TIMEOUT)
                return
            except RuntimeError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise

    def interrupt(self) -> None:
        os.kill(self._process.pid, signal.SIGINT)

    def _on_child(self, number: int, frame: object) -> None:
        if self._process.poll() is None:
            return
        if self._ready:
            os._exit(1)
        raise ChildProcessError("Jupyter's kernel ended before it was ready")

    def run(self, code: str) -> "dict[str, Any]":
        self._answer = {"result": None, "error": None}
        reply = self._client.execute_interactive(
            code, store_history=True, allow_stdin=False, output_hook=self._on_output
        )
        content = reply["content"]
        error = self._answer["error"]
        if content["status"] == "ok":
            status = "ok"
        elif content["status"] == "aborted" or content.get("ename") == "KeyboardInterrupt":
            status = "interrupted"
        else:
            status = "error"
            error = error or _error(content)
        count = content.get("execution_count") or 0
        return {**self._answer, "status": status, "error": error, "execution_count": count}

    def _on_output(self, message: "dict[str, Any]") -> None:
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "stream":
            fd = self._server.writers[content["name"] == "stderr"]
            data = content["text"].encode("utf-8", "backslashreplace")
            while data:
                data = data[os.write(fd, data) :]
        elif kind == "execute_result":
            self._answer["result"] = bounded(content["data"])
        elif kind == "display_data":
            self._server.send({"display": bounded(content["data"])})
        elif kind == "error":
            self._answer["error"] = _error(content)


def _error(content: "dict[str, Any]") -> "dict[str, str]":
    text = _ANSI.sub("", "\n".join(content.get("traceback") or []))
    return {
        "name": clean(str(content.get("ename")), 200),
        "value": clean(str(content.get("evalue")), 4096),
        "traceback": clean(text[-_MAX_TRACEBACK:], _MAX_TRACEBACK),
    }
