"""What ``agentd kill`` takes for no sandbox."""

import pytest
from tests.unit.client.http.conftest import Scripted
from tests.unit.client.http.conftest import daemon as daemon  # noqa: PLC0414

from agentd.client.cli import main as cli


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["build", "prc-19ac1f0e2b4171d2a3f0"], "is a command (write ID --process prc-19ac1f0e"),
        (["-9", "build"], "-9 is no ID (write --process PROCESS --signal NAME)"),
    ],
    ids=["a command behind its sandbox", "a signal before it"],
)
def test_nothing_is_ended_where_a_command_was_perhaps_meant(
    daemon: Scripted, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.answers = [(204, {}, b"")]
    assert cli.main(["kill", "--url", f"unix:{daemon.server_address}", *words]) == 2
    assert said in capsys.readouterr().err
    assert daemon.requests == []
