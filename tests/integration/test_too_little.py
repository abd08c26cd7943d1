"""Limits with which nothing could run are refused by name, at every door."""

import subprocess
import sys

import pytest
from tests.security.daemons import fixture

from agentd.client.sandbox import Sandbox
from agentd.daemon.pipeline import Pipeline
from agentd.model.errors import InvalidInput, SandboxError
from agentd.model.limits import Limits
from agentd.model.principal import local
from agentd.model.spec import SandboxSpec
from agentd.sandbox.manager import Manager

daemon = fixture()
WRONG = [
    ({"memory": 1}, "memory of 1 byte is too little for a sandbox (give at least 1 MiB)"),
    ({"memory": "4K"}, "memory of 4 KiB is too little for a sandbox (give at least 1 MiB)"),
    ({"open_files": 3}, "open_files of 3 is too little for a sandbox (give at least 16)"),
]


@pytest.mark.parametrize(("asked", "said"), WRONG)
def test_it_is_said_by_name_and_with_the_fix(daemon, asked, said):
    refused = daemon.ask("POST", "/v1/sandboxes", asked)
    assert refused.status == 400, refused.body
    assert f"{refused.json['message']} ({refused.json['remediation']})" == said
    for url in (None, daemon.url):
        with pytest.raises(InvalidInput) as caught:
            Sandbox.create(url=url, **asked)
        assert str(caught.value) == said
    words = [f"--{name.replace('_', '-')}={value}" for name, value in asked.items()]
    ran = subprocess.run(
        [sys.executable, "-m", "agentd", "run", *words, "--", "true"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 2 and said.replace("open_files", "--open-files") in ran.stderr


@pytest.mark.root
@pytest.mark.parametrize("backend", ["linux", "landlock", "host"])
def test_what_no_request_said_is_explained_where_the_sandbox_cannot_be_built(backend):
    """A policy's limit, or the configuration's."""
    manager = Manager()
    spec = SandboxSpec(isolation=0, backend=backend, limits=Limits(memory=1))
    try:
        with pytest.raises(SandboxError, match="memory of 1 byte is too little to build"):
            Pipeline(manager).open(local("uid:0"), spec)
    finally:
        manager.close()


@pytest.mark.parametrize(
    ("text", "key", "option"),
    [
        ("limits.max.memory = '1G'", "limits.max.memory", "--memory=1G"),
        ("limits.default.cpus = 2", "limits.default.cpus", "--cpus=2"),
        ("[[template]]\nname = 'a'\nmemory = '1G'", "template[0].memory", "--memory=1G"),
    ],
)
def test_a_limit_that_no_group_holds_here_is_warned_of(as_user, text, key, option):
    """Where a sandbox with that limit is refused, and there alone."""
    path = as_user.home / "agentd.toml"
    path.write_text(f"{text}\n")
    checked = as_user.agentd("config", "check", str(path))
    where = ["--backend", "landlock", "--isolation", "process"]
    ran = as_user.agentd("run", "--embedded", *where, option, "--", "true")
    warned = f"warning: {key}: is held by virtual machines alone".encode() in checked.stdout
    assert (checked.returncode, warned) == (0, b"cannot be enforced here" in ran.stderr)


def test_a_limit_of_a_templates_machine_is_not(as_user):
    path = as_user.home / "agentd.toml"
    path.write_text("[[template]]\nname = 'a'\nisolation = 'microvm'\nmemory = '1G'\n")
    checked = as_user.agentd("config", "check", str(path))
    assert checked.returncode == 0 and b"held by" not in checked.stdout
