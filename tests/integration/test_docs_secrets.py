"""docs/secrets.md: its examples do what it says, and its bounds are those of the code."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.security.daemons import running

from agentd.daemon import secrets as kept
from agentd.model import secret

PAGE = (Path(__file__).parents[2] / "docs/secrets.md").read_text()
LINES = re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)[0].splitlines()
PYTHON = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)[0]
VALUE = "sk-ant-api03-OnlyThePagesOwnKey0123456789"
_NETS = '[sandbox]\nnetworks = ["none", "restricted"]\n[egress]\nallow = ["public"]\n'


def test_its_examples_do_what_it_says(tmp_path: Path) -> None:
    with running(_NETS) as daemon:
        env = {**os.environ, "AGENTD_URL": daemon.url, "API_TOKEN": VALUE}

        def ran(*argv: str) -> str:
            done = subprocess.run(
                argv, input=VALUE, cwd=tmp_path, env=env, capture_output=True, text=True,
                timeout=240, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert VALUE not in done.stdout + done.stderr
            return done.stdout.strip()

        agentd = (sys.executable, "-m", "agentd")
        said = [ran(*agentd, *shlex.split(line)[1:]) for line in LINES]
        assert said[0] == "API_TOKEN"
        assert said[1].startswith("sbx-")
        assert said[2].startswith("sk-ant-api03-")
        assert len(said[2]) == len(VALUE)
        ran(sys.executable, "-c", PYTHON)
        ran(*agentd, "kill", said[1])


def test_its_bounds_are_those_of_the_code() -> None:
    assert f"{secret.MIN_VALUE} to {secret.MAX_VALUE} bytes" in PAGE
    assert f"less than {secret.MIN_REPLACED} bytes" in PAGE
    assert f"at most {secret.MAX_SECRETS} secrets, of {secret.MAX_VALUES >> 10} KiB" in PAGE
    assert f"up to {secret.MAX_HOSTS}" in PAGE
    assert f"has {kept.MAX_SECRETS} at most, of {kept.MAX_BYTES >> 10} KiB" in PAGE
