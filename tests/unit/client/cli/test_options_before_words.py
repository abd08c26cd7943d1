"""An option stands before a word that may be left out as well as behind it, on each Python."""

import pytest

from agentd.client.cli import capability, config, key, net, snapshot


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


@pytest.mark.parametrize("order", [("--json", "word"), ("word", "--json")])
@pytest.mark.parametrize("option", [(), ("--url", "unix:/nowhere")])
def test_of_an_action_too(order: tuple[str, str], option: tuple[str, ...]) -> None:
    options = net._parser().parse_args(["explain", "https://pypi.org", *option, *order])
    assert (options.json, options.target, options.id) == (True, "https://pypi.org", "word")
    assert options.run is net._explain
