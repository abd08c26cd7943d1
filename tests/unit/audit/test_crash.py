"""kill -9 at any moment: the log opens, verifies, and has every record that was acknowledged."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from agentd.audit.log import AuditLog
from agentd.audit.read import records
from agentd.audit.verify import verify
from agentd.model.audit import Position

WRITER = """
import sys, threading, os
from agentd.audit.chain import Keep
from agentd.audit.log import AuditLog
from agentd.model.audit import Event, Kind
log = AuditLog(sys.argv[1], keep=Keep(file_bytes=40_000))
def work():
    while True:
        place = log.append(Event(kind=Kind.START, fields={"pad": "x" * 300}))
        os.write(1, f"{place}\\n".encode())
threads = [threading.Thread(target=work) for _ in range(4)]
os.write(1, b"ready\\n")
for thread in threads: thread.start()
"""


def test_whatever_was_acknowledged_is_there_after_a_kill(tmp_path: Path) -> None:
    acknowledged: dict[int, str] = {}
    chance = random.Random(7)  # noqa: S311
    for _ in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            # After some of what it does, however long that takes here.
            told = [process.stdout.readline().decode() for _ in range(chance.randrange(2, 12))]
            time.sleep(chance.uniform(0.0, 0.01))
            process.kill()
            told += process.stdout.read().decode().splitlines(keepends=True)
        for line in told:
            if line.endswith("\n"):
                place = Position.parse(line)
                acknowledged[place.seq] = place.hash
        log = AuditLog(str(tmp_path))
        head = log.head
        log.close()
        verdict = verify(str(tmp_path), head)
        assert verdict.ok, verdict.problems
    there = {record.seq: record.hash for record in records(str(tmp_path))}
    assert acknowledged.items() <= there.items()
    assert len(acknowledged) > 20 and os.listdir(tmp_path)
