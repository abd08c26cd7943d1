"""What a daemon keeps in memory of what sandboxes write: of output while commands run, and until
they are answered and the answer is read; of other answers, which it takes apart."""

import base64
import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import Daemon, running, until

_COMMANDS, _BYTES = 12, 15_000_000


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


def resident(daemon: Daemon) -> int:
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) << 10


@contextlib.contextmanager
def peak(daemon: Daemon) -> Iterator[Callable[[], int]]:
    """How many bytes more than now it had at most by then."""
    assert daemon.process is not None
    folder = Path(f"/proc/{daemon.process.pid}")
    (folder / "clear_refs").write_text("5")  # proc(5): its peak begins anew
    before = resident(daemon)

    def more() -> int:
        found = re.findall(r"VmHWM:\s+(\d+) kB", (folder / "status").read_text())
        return (int(found[0]) << 10) - before

    yield more


def test_output_that_was_answered_is_in_the_journal_alone(daemon: Daemon) -> None:
    box = daemon.sandbox()
    path = f"/v1/sandboxes/{box}"
    before = resident(daemon)
    for _ in range(_COMMANDS):
        ended = daemon.ask(
            "POST", f"{path}/exec", {"cmd": f"head -c {_BYTES} /dev/zero | tr '\\0' a"}
        )
        assert ended.json["stdout"] == "a" * _BYTES
    process = ended.json["process"]
    # Of a few at a time; each was kept twice, as long as its sandbox lived.
    assert resident(daemon) - before < _COMMANDS * _BYTES
    shown = daemon.ask("GET", f"{path}/processes/{process}").json
    assert shown["output"] == {"stdout": _BYTES} and shown["result"]["exit_code"] == 0
    assert len(daemon.ask("GET", f"{path}/processes/{process}/output?stream=stdout").body) == _BYTES


def sent(daemon: Daemon, path: str, body: object) -> socket.socket:
    """A connection on which it is asked for, and nothing is read."""
    text = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    made = socket.socket(socket.AF_UNIX)
    made.connect(daemon.socket)
    made.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
    return made


def length(answer: socket.socket) -> int:
    """Bytes of an answer, read to its end."""
    with answer, answer.makefile("rb") as file:
        assert file.readline().split()[1] == b"200"
        told = next(line for line in file if line.lower().startswith(b"content-length:"))
        while file.readline() != b"\r\n":
            pass
        return len(file.read(int(told.partition(b":")[2])))


@contextlib.contextmanager
def writers(daemon: Daemon, box: str) -> Iterator[list[socket.socket]]:
    """So many commands, each of which has written to both streams, and goes on until there is
    ``go``; nobody reads their answers."""
    write = f"head -c {_BYTES} /dev/zero | tr '\\0'"
    path = f"/v1/sandboxes/{box}/exec"
    with contextlib.ExitStack() as stack:
        made = []
        for number in range(_COMMANDS):
            wait = f"touch wrote.{number}; while [ ! -e go ]; do sleep 0.1; done"
            cmd = f"{write} a; {write} b >&2; {wait}"
            made.append(stack.enter_context(sent(daemon, path, {"cmd": cmd})))

        def count() -> int:
            found = daemon.ask("POST", path, {"cmd": "set -- wrote.*; echo $#"})
            return int(found.json["stdout"])

        until(lambda: count() == _COMMANDS)
        yield made


def test_output_of_commands_that_run_is_in_their_journals_alone(daemon: Daemon) -> None:
    before = resident(daemon)
    with writers(daemon, daemon.sandbox()):
        assert resident(daemon) - before < _COMMANDS * _BYTES // 2


def test_answers_wait_for_room_before_they_are_made(daemon: Daemon) -> None:
    """Those that end together, while their client reads none, and those whose client goes."""
    before = resident(daemon)
    box = daemon.sandbox()
    path = f"/v1/sandboxes/{box}"
    with writers(daemon, box) as answers:
        daemon.ask("POST", f"{path}/exec", {"cmd": "touch go"})

        def ended() -> bool:
            found = daemon.ask("GET", f"{path}/processes?limit=100")
            return found.status == 429 or all(each["state"] == "ended" for each in found.json)

        until(ended)
        until(lambda: resident(daemon) - before > 100 << 20)
        # Half of 512 MiB is one caller's, and the answer in the making is more than once there.
        most = 0
        for _ in range(20):
            threading.Event().wait(0.05)
            most = max(most, resident(daemon) - before)
        assert most < _COMMANDS * 2 * _BYTES
        for answer in answers[1::2]:
            answer.close()
        lengths = [length(answer) for answer in answers[::2]]
        assert all(2 * _BYTES < each < 2 * _BYTES + 10_000 for each in lengths)
    until(lambda: resident(daemon) - before < 100 << 20)
    assert daemon.ask("POST", f"{path}/exec", {"cmd": "echo still"}).json["stdout"] == "still\n"


def test_the_begin_of_a_long_output_is_answered_though_all_is_more_than_a_journal(
    daemon: Daemon,
) -> None:
    box = daemon.sandbox()
    path = f"/v1/sandboxes/{box}"
    cmd = "head -c 90M /dev/urandom | tee -p all; head -c 16M all > begin; tail -c 1M all > end"
    told = daemon.ask("POST", f"{path}/exec", {"cmd": ["bash", "-c", cmd]}).json
    begin = daemon.ask("GET", f"{path}/files?path=/workspace/begin").body
    assert base64.b64decode(told["stdout"]) == begin and told["truncated"]
    assert len(begin) == 16 << 20
    size = 90 << 20
    query = f"stream=stdout&from={size - (1 << 20)}"
    rest = daemon.ask("GET", f"{path}/processes/{told['process']}/output?{query}").body
    assert rest == daemon.ask("GET", f"{path}/files?path=/workspace/end").body


def test_the_command_line_says_what_a_journal_has_not_kept() -> None:
    with running('[journal]\nprocess = "64K"\n') as daemon:
        assert b"journal.process: has the effect of 4M" in daemon.log
        box = daemon.sandbox()
        path = f"/v1/sandboxes/{box}"
        ask = {"cmd": "head -c 9000000 /dev/urandom", "wait": False}
        process = daemon.ask("POST", f"{path}/exec", ask).json["id"]
        until(lambda: daemon.ask("GET", f"{path}/processes/{process}").json["state"] == "ended")
        done = daemon.cli("logs", box, process)
        gone = 9_000_000 - len(done.stdout)
        assert 9_000_000 - (4 << 20) <= gone < 9_000_000
        assert done.stderr.decode() == f"agentd logs: {gone} bytes of stdout are gone\n"
        only = daemon.cli("logs", "--stream", "stdout", box, process)
        assert (only.stdout, only.stderr) == (done.stdout, done.stderr)
        other = daemon.cli("logs", "--stream", "stderr", box, process)
        assert (other.stdout, other.stderr) == (b"", b"")
        done = daemon.cli("attach", box, process, "--all")
        assert len(done.stdout) == 9_000_000 - gone
        assert b"output is missing: its oldest is not kept" in done.stderr


# As if it were the python3 that asks SQLite.
_PYTHON = r"""#!/bin/sh
printf '{"columns":["a"],"rows":['
head -c 12000000 /dev/zero | sed 's/\x0/[],/g' | head -c 12000000
printf '[]],"truncated":"","immutable":false}'
"""


def test_a_python3_that_answers_with_millions_of_values_is_not_taken_at_its_word(
    daemon: Daemon,
) -> None:
    box = daemon.sandbox(env={"PATH": "/workspace/bin:/usr/bin:/bin"})
    put = "mkdir bin; cat > bin/python3; chmod +x bin/python3; touch a.db"
    daemon.ask("POST", f"/v1/sandboxes/{box}/exec", {"cmd": put, "stdin": _PYTHON})
    with peak(daemon) as more:
        asked = {"path": "a.db", "sql": "select 1"}
        answer = daemon.call("sqlite.query.v1", asked, sandbox=box)
        assert (answer.status, answer.code) == (413, "too_large")
        assert "values" in answer.json["message"]
        assert more() < 100 << 20


def test_what_an_interpreter_prints_is_not_kept_while_it_runs(daemon: Daemon) -> None:
    box = daemon.sandbox()
    code = """if True:
        import os, sys, time
        for each in (sys.stdout, sys.stderr):
            each.write("a" * (4 << 20))
            each.flush()
        open("printed.CONTEXT", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.1)
    """
    answers: list[int] = []

    def ask(context: str) -> None:
        asked = {"code": code.replace("CONTEXT", context), "context": context}
        answer = daemon.call("python.exec.v1", {**asked, "max_output": 4 << 20}, sandbox=box)
        answers.append(len(answer.json["value"]["stdout"]) + len(answer.json["value"]["stderr"]))

    before = resident(daemon)
    threads = [threading.Thread(target=ask, args=(f"c{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    path = f"/v1/sandboxes/{box}/exec"
    count = {"cmd": "set -- printed.*; echo $#"}
    until(lambda: daemon.ask("POST", path, count).json["stdout"] == "8\n")
    assert resident(daemon) - before < 60 << 20
    daemon.ask("POST", path, {"cmd": "touch go"})
    for thread in threads:
        thread.join()
    assert answers == [8 << 20] * 8


def test_long_listings_wait_for_room(daemon: Daemon) -> None:
    box = daemon.sandbox()
    path = f"/v1/sandboxes/{box}"
    make = "import os\nos.mkdir('many')\nos.chdir('many')\n"
    make += "for i in range(30000):\n  os.close(os.open(f'{i:0200}', os.O_CREAT))"
    daemon.ask("POST", f"{path}/exec", {"cmd": ["python3", "-c", make]})
    answers: list[int] = []

    def ask() -> None:
        answers.append(len(daemon.ask("GET", f"{path}/files/list?path=/workspace/many").json))

    with peak(daemon) as more:
        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [30_000] * 12
        assert more() < 200 << 20


def test_of_a_command_that_has_ended_its_first_words_are_kept_alone(daemon: Daemon) -> None:
    box = daemon.sandbox()
    path = f"/v1/sandboxes/{box}"
    words = ["true", "a" * 100, *["b" * 110_000] * 8]
    sizes = []
    for _ in range(3):  # threads that have begun have heaps of their own: the first are for those
        for number in range(30):
            daemon.ask("POST", f"{path}/exec", {"cmd": words, "wait": number % 2 == 0})
        until(lambda: all(each["state"] == "ended" for each in processes(daemon, path)))
        sizes.append(resident(daemon))
    assert sizes[2] - sizes[1] < 15 * 880_000, sizes
    for each in processes(daemon, path):
        assert each["argv"] == ["true", "a" * 100, "b" * (4096 - 104)]
        assert each["argv_cut"] == 880_000 - (4096 - 104)
    assert f"{'b' * 50} ..." in daemon.cli("inspect", box).stdout.decode()


def processes(daemon: Daemon, path: str) -> list[Any]:
    found: list[Any] = daemon.ask("GET", f"{path}/processes").json
    return found
