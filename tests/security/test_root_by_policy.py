"""Threat: a caller has a sandbox in which its programs are root, where nobody may.

Control: the policy sees who commands are inside, and whether the root can be written to.
"""

import re
from pathlib import Path

import pytest
from tests.security.daemons import running

from agentd import Sandbox
from agentd.model.errors import AgentdError

PAGE = Path(__file__).parents[2] / "docs/root.md"


def test_a_policy_denies_root_and_a_root_to_write_to() -> None:
    """By the words of the page."""
    (rules,) = re.findall(r"```rego\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with running(policy=rules) as daemon:
        for options in ({"user": "root"}, {"user": 0}, {"user": "00"}, {"writable": True}):
            with pytest.raises(AgentdError, match="nobody is root here") as caught:
                Sandbox.create(url=daemon.url, **options)  # type: ignore[arg-type]
            assert caught.value.code == "policy_denied"
        with Sandbox.create(url=daemon.url) as sandbox:
            assert sandbox.run("id -u").text == "1000\n"
