"""The example in docs/audit.md runs, and its commands and kinds are there."""

import re
import shutil
from pathlib import Path
from typing import Any

from agentd.audit.read import records
from agentd.audit.receipt import Execution
from agentd.daemon import config
from agentd.daemon.config import schema
from agentd.daemon.config.values import Sink
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
    section = PAGE.partition("- `kind` is ")[2].partition("- `capability` is")[0]
    assert sorted(re.findall(r"`(\w+)`", section)) == sorted(Kind)


def test_it_says_when_each_is_written() -> None:
    table = PAGE.partition("| record | when |")[2].partition("\n\n")[0]
    firsts = " ".join(re.findall(r"^\|(.*?)\|", table, re.M))
    assert sorted(re.findall(r"`(\w+)`", firsts)) == sorted(Kind)


def test_the_settings_and_sinks_are_those_that_there_are(tmp_path: Path) -> None:
    (settings,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    (tmp_path / "agentd.toml").write_text(settings)
    read = config.read(str(tmp_path / "agentd.toml"), {})
    assert read.problems == []
    members = {line.partition(" ")[0] for line in settings.splitlines()[1:]}
    assert members == set(schema.AuditSettings.__struct_fields__)
    table = PAGE.partition("| sink | |")[2].partition("\n\n")[0]
    firsts = " ".join(re.findall(r"^\|(.*?)\|", table, re.M))
    for sink in re.findall(r"`([^`]+)`", firsts):
        assert Sink.of(sink) == sink


def test_what_is_in_a_receipt_is_all_of_it() -> None:
    table = PAGE.partition("| in its predicate | |")[2].partition("\n\n")[0]
    firsts = " ".join(re.findall(r"^\|(.*?)\|", table, re.M))
    found = {name.rpartition(".")[2] for name in re.findall(r"`([\w.]+)`", firsts)}
    assert found == {*Execution.__struct_fields__, "record"}
