"""The example in docs/audit.md runs, and its commands and kinds are there."""

import re
import shutil
from pathlib import Path
from typing import Any

from agentd.audit.read import records
from agentd.model.audit import Kind

PAGE = (Path(__file__).parents[2] / "docs/audit.md").read_text()


def test_the_example_runs_and_hides_its_secret() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102 our own page
    try:
        kinds = {record.kind: record for record in records(f"{names['folder']}/audit")}
        assert list(kinds) == ["opened", "start", "end"]
        assert kinds["start"].fields["argv"] == ["deploy", "[hidden]"]
        assert names["statement"].predicate.record == kinds["end"].position
    finally:
        shutil.rmtree(names["folder"])


def test_every_kind_is_named() -> None:
    section = PAGE.partition("- `kind` is ")[2].partition("- A record")[0]
    assert sorted(re.findall(r"`(\w+)`", section)) == sorted(Kind)
