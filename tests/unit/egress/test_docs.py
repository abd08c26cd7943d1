"""What the page of the network says of presets and rules is what there is."""

import re
from pathlib import Path

from agentd.egress.compile import preset
from agentd.model.egress import MAX_RULES, MAX_TEXT, PRESETS, parse_rule

PAGE = (Path(__file__).parents[3] / "docs/network.md").read_text()


def _rows(section: str) -> list[tuple[list[str], list[str]]]:
    table = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*) \| (.*) \|$", table, re.M)
    return [
        (re.findall(r"`([^`]+)`", left), re.findall(r"`([^`]+)`", right)) for left, right in rows
    ]


def test_the_page_has_every_preset_with_all_that_it_opens() -> None:
    rows = {name: tuple(rules) for (name,), rules in _rows("Presets")}
    assert rows == {name: preset(name).rules for name in PRESETS}


def test_every_rule_of_the_page_is_one() -> None:
    texts = [text for left, _ in _rows("Rules") for text in left]
    assert len(texts) >= 12
    for text in texts:
        assert parse_rule(text).text == text.removeprefix("preset:")
    assert f"At most {MAX_RULES}, of {MAX_TEXT >> 10} KiB together." in PAGE
