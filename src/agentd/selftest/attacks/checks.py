"""What a sandbox must still be able to do: a wall that lets nothing live stops every attack too."""

from agentd.model.isolation import IsolationLevel
from agentd.selftest.attack import Attack, AttackOutcome, Judged, shown, unfinished
from agentd.selftest.report import Verdict

_RUN = """
import subprocess, threading
ran = subprocess.run(["sh", "-c", "echo $((6 * 7))"], capture_output=True, text=True)
said("shell", ran.stdout.strip() == "42")
thread = threading.Thread(target=int)
thread.start()
thread.join()
said("threads", True)
"""
_FILES = """
os.makedirs("folder/below", exist_ok=True)
for folder in (os.getcwd(), os.environ.get("TMPDIR", "/tmp")):
    with open(f"{folder}/file", "w") as file:
        file.write("kept")
    said(folder, open(f"{folder}/file").read() == "kept")
os.rename("file", "folder/below/file")
said("renamed", os.listdir("folder/below") == ["file"])
"""
_LOOPBACK = """
import threading
with socket.create_server(("127.0.0.1", 0)) as server:
    with socket.create_connection(server.getsockname(), 5) as client:
        server.accept()[0].sendall(b"hello")
        said("loopback", client.recv(5) == b"hello")
"""
_EVERYWHERE: dict[IsolationLevel, tuple[str, ...]] = dict.fromkeys(IsolationLevel, ())


def judge(seen: AttackOutcome) -> Judged:
    """Works where all that the script said is that it was so."""
    early = unfinished(seen)
    if early is not None:
        return Verdict.BROKEN, early[1]
    good = all(value in ("True", "reached") for value in seen.said.values())
    return (Verdict.WORKS if good else Verdict.BROKEN), "" if good else shown(seen.said)


CHECKS = (
    Attack("run programs and threads", _RUN, _EVERYWHERE, judge),
    Attack("write and read files", _FILES, _EVERYWHERE, judge),
    Attack(
        "serve and connect on its own loopback",
        _LOOPBACK,
        {level: () for level in IsolationLevel if level is not IsolationLevel.PROCESS},
        judge,
        otherwise="the process level has no network namespace, so no sockets at all",
    ),
)
