"""A command line that a signal ends while its daemon has it wait for somebody ends, and what it
asked is withdrawn."""

import os
import signal
import subprocess
import sys

import pytest
from tests.security.daemons import Daemon, fixture, until

_POLICY = """
default decision := {"allow": true}

decision := {"allow": true, "obligations": {"approve": true}} if {
	some word in input.parameters.args
	contains(word, "ghost")
}

decision := {"allow": true, "obligations": {"approve": true}} if {
	input.capability.name == "sandbox.create.v1"
	input.parameters.disk == 80740352
}
"""
daemon = fixture(policy=_POLICY)


def _pending(daemon: Daemon) -> list[str]:
    views = daemon.ask("GET", "/v1/approvals").json
    return [view["id"] for view in views if view["state"] == "pending"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize(
    "words",
    [
        ["exec", "BOX", "--", "echo", "ghost"],
        ["exec", "-d", "BOX", "--", "echo", "ghost"],
        ["exec", "--json", "BOX", "--", "echo", "ghost"],
        ["run", "--", "echo", "ghost"],
        ["run", "--disk", "77M", "--", "true"],
    ],
    ids=["exec", "exec -d", "exec --json", "run", "a sandbox of run"],
)
def test_who_waits_for_an_approval_can_be_interrupted(
    daemon: Daemon, words: list[str], number: int
) -> None:
    words = [daemon.sandbox() if word == "BOX" else word for word in words]
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTD_")}
    with subprocess.Popen(
        [sys.executable, "-m", "agentd", *words],
        env=env | {"AGENTD_URL": daemon.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            until(lambda: bool(_pending(daemon)))
            process.send_signal(number)
            said, complaint = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, said, complaint) == (128 + number, b"", b"")
    until(lambda: not _pending(daemon))
