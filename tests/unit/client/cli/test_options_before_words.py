"""An option stands before a word that may be left out as well as behind it, on each Python."""

import pytest

from agentd.client.cli import capability, config, key, snapshot


@pytest.mark.parametrize("order", [("--json", "word"), ("word", "--json")])
@pytest.mark.parametrize(
    ("command", "action", "name"),
    [
        (snapshot, "inspect", "what"),
        (capability, "show", "name"),
        (config, "check", "path"),
        (key, "revoke", "id"),
    ],
    ids=lambda value: getattr(value, "__name__", value).rpartition(".")[2],
)
def test_it_is_that_word(command: object, action: str, name: str, order: tuple[str, str]) -> None:
    options = command._parser().parse_args([action, *order])  # type: ignore[attr-defined]
    assert (options.json, getattr(options, name)) == (True, "word")
