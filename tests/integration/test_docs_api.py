"""docs/api.md: its example of each body is taken, and a body that is not is told what was meant."""

import inspect
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import Daemon, fixture

from agentd.model import api

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
daemon = fixture()


def test_every_body_has_an_example() -> None:
    ((section),) = re.findall(r"## With curl\n(.*?)^\*\*Hanging up", PAGE, re.S | re.M)
    bodies = {name for name, _ in inspect.getmembers(api, inspect.isclass) if name.endswith("Body")}
    missing = {name for name in bodies - {"_Body"} if name not in section}
    assert missing == set()


def test_the_examples_do_what_they_say(daemon: Daemon) -> None:
    for program in ("curl", "jq"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    ((script),) = re.findall(r"^```bash\n(.*?)^```", PAGE, re.S | re.M)
    script = script.replace("$XDG_RUNTIME_DIR/agentd/agentd.sock", daemon.socket)
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    for said in ('"stdout":"42\\n"', '"stdout":"HELLO"', '"content":"hello\\n"', "event: result"):
        assert said in done.stdout, said


@pytest.mark.parametrize(
    ("path", "body", "fix"),
    [
        ("/v1/run", {"cmd": ["ls"]}, 'did you mean exec.cmd? write it as {"exec": {"cmd": ...}}'),
        ("/v1/run", {"exec": {"cmd": "ls", "cwdd": "/"}}, "did you mean exec.cwd?"),
        ("/v1/run", {"exec": {}}, "give exec.cmd; the fields are: cmd, cwd, env"),
        ("/v1/run", {"exec": {"cmd": 5}}, "the fields of RunBody are in docs/api.md"),
        ("/v1/sandboxes", {"memry": "1G"}, "did you mean memory?"),
        ("/v1/sandboxes", {"zzzz": 1}, "the fields are: isolation, backend, runtime, image"),
        ("/v1/sandboxes", {"secrets": [{"nmae": "A"}]}, "did you mean secrets[0].name?"),
        ("/v1/sandboxes", {"secrets": ["A@b.c", {"name": "A"}]}, "give secrets[1].hosts; the"),
        ("/v1/keys", {"name": "x", "scope": ["run"], "scopes": ["run"]}, "did you mean scopes?"),
    ],
)
def test_a_field_that_does_not_fit(
    daemon: Daemon, path: str, body: dict[str, Any], fix: str
) -> None:
    answer = daemon.ask("POST", path, body)
    assert answer.status == 400
    assert answer.json["remediation"].startswith(fix)
