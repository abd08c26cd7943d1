"""What works in the container that this runs in, as one JSON object. Python's own library alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

_AGENTD = "/opt/venv/bin/agentd"
_SECONDS = 60
_SOCKET = "unix:/tmp/agentd.sock"
YES, NO, PROCESS = "yes", "no", "process"


class Container:
    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.words: dict[str, str] = {}

    def agentd(self, step: str, *words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [_AGENTD, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
        self.words[step] = f"{done.returncode}: {done.stdout}{done.stderr}"
        return done

    def note(self, step: str, *, works: bool) -> bool:
        self.found[step] = YES if works else NO
        return works

    def run(self, step: str, *words: str) -> bool:
        return self.note(step, works=self.agentd(step, "run", *words).returncode == 0)

    def mounted(self, step: str, folder: Path, mode: str, *words: str) -> None:
        """Whether the folder is seen, and written as the mode says."""
        new = folder / f"new-{mode}-{'-'.join(words)}"
        writes = f"echo x > {new.name}"
        script = f"cat a.txt && ! {writes}" if mode == "ro" else f"cat a.txt && {writes}"
        mount = f"{folder}:{mode}"
        done = self.agentd(step, "run", *words, "-w", mount, "--", "sh", "-c", script)
        right = done.stdout.startswith("hi\n") and new.exists() == (mode == "rw")
        self.note(step, works=done.returncode == 0 and right)

    def weakest(self, step: str, *words: str) -> str:
        """What it said, at the default level or else at the process level."""
        for level, more in ((YES, ()), (PROCESS, ("--isolation", "process"))):
            done = self.agentd(step, *words, *more)
            if done.returncode == 0:
                self.found[step] = level
                return done.stdout.strip()
        self.found[step] = NO
        return ""

    def serve(self) -> None:
        # Without that a daemon gives nobody the process level.
        env = {**os.environ, "AGENTD_SANDBOX__MINIMUM": "process"}
        self.found["serve"] = NO
        with (
            open("/tmp/serve.log", "w+") as log,
            subprocess.Popen(
                [_AGENTD, "serve", "--listen", _SOCKET],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
            ) as daemon,
        ):
            assert daemon.stdout is not None
            ready = daemon.stdout.readline()
            if ready:
                self.use_daemon()
            daemon.terminate()
            code = daemon.wait(_SECONDS)
            log.seek(0)
            self.words["daemon"] = f"{code}: {ready!r} {log.read()}"

    def use_daemon(self) -> None:
        os.environ["AGENTD_URL"] = _SOCKET
        sandbox = self.weakest("serve", "create")
        if sandbox and self.agentd("exec", "exec", sandbox, "--", "true").returncode:
            self.found["serve"] = NO


def main() -> None:
    here = Container()
    doctor = here.agentd("doctor", "doctor", "--json").stdout
    work, volume = Path("/tmp/work"), Path("/volume")
    work.mkdir()
    for folder in (work, volume):
        (folder / "a.txt").write_text("hi\n")
    if here.run("run", "--", "true"):
        for step, mode in (("-w :ro", "ro"), ("-w :cow", "cow"), ("-w", "rw")):
            here.mounted(step, work, mode)
        here.mounted("-w, volume", volume, "rw")
    here.run("process", "--isolation", "process", "--", "true")
    here.mounted("process, -w", work, "rw", "--isolation", "process")
    here.weakest("call", "call", "fs.list.v1")
    here.serve()
    told = {"found": here.found, "words": here.words, "doctor": json.loads(doctor)}
    json.dump(told, sys.stdout)


main()
