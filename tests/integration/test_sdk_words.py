"""What the SDK tells a Python program is said in its own words, and once."""

import ast
import re

import pytest
from tests.conftest import OrdinaryUser
from tests.integration.on_a_terminal import shown

from agentd import Refused, Sandbox

REFUSED = """
from agentd import AgentdError, Sandbox
try:
    Sandbox.create(memory="256M").close()
except AgentdError as error:
    print([type(error).__name__, str(error), error.message, error.args])
"""
BOUND = """
from agentd import ExecLimits, Sandbox
with Sandbox.create() as sandbox:
    bound = ExecLimits(address_space=1 << 29)
    result = sandbox.run(["python3", "-c", "bytearray(1 << 30)"], limits=bound)
    print([result.exit_code, "MemoryError" in result.stderr_text])
"""
TWICE = "from agentd import Sandbox; [Sandbox.create().close() for _ in range(2)]"


def test_a_refused_limit_names_the_argument_and_each_way_out_once(as_user: OrdinaryUser) -> None:
    said = as_user.python("-c", REFUSED).stdout.decode()
    if not said:
        pytest.skip("memory is limited here for an ordinary user, too: its cgroup is delegated")
    kind, text, message, args = ast.literal_eval(said)
    assert (kind, message, args) == ("Refused", "memory= cannot be enforced here", (message,))
    assert "--memory" not in text and text.count("memory=") == 2
    assert text.count("run as root") == text.count("delegate") == 1
    assert "limits=ExecLimits(address_space=" in text
    assert "systemd-run --user --scope" in text
    code, is_bound = ast.literal_eval(as_user.python("-c", BOUND).stdout.decode())
    assert (code, is_bound) == (1, True)


def test_the_command_line_keeps_its_own_words(as_user: OrdinaryUser) -> None:
    ran = as_user.agentd("run", "--memory", "256M", "--", "true")
    if ran.returncode == 0:
        pytest.skip("memory is limited here for an ordinary user, too: its cgroup is delegated")
    said = ran.stderr.decode()
    assert ran.returncode == 125
    assert "--memory cannot be enforced here" in said and "ulimit -v" in said
    assert "also of [limits] and [[template]]" in said  # where nobody said --memory
    assert said.count("run as root") == 1


def test_a_cause_names_the_argument() -> None:
    with Sandbox.create(timeout="100ms", isolation="process") as sandbox:
        assert sandbox.run("sleep 60").cause.remediation.startswith("raise timeout=, or make")
        assert sandbox.start("sleep 60").wait().cause.remediation.startswith("raise timeout=")
    with pytest.raises(Refused) as caught:
        Sandbox.create(isolation="none", backend="host", user="root")
    assert "user= cannot be enforced" in str(caught.value)
    assert 'isolation="namespace"' in caught.value.remediation


def test_a_default_that_does_not_hold_is_told_once_on_a_terminal(as_user: OrdinaryUser) -> None:
    drop = (
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if as_user.is_other else []
    )
    argv = [*drop, *as_user._python, "-c", TWICE]
    told = shown(argv, env=as_user.env, cwd=as_user.home)
    if not told:
        pytest.skip("memory is limited here for an ordinary user, too: its cgroup is delegated")
    assert re.fullmatch(r"agentd: memory is not limited \(default 1G\): .*ExecLimits.*\n", told)
    assert as_user.python("-c", TWICE).stderr == b""
