import json
import re
import shlex
from types import SimpleNamespace

import pytest

from agentd.capability.registry import Catalogue, Registry
from agentd.client.cli import main as cli
from agentd.client.cli import parameters
from agentd.model.capability import About, Example
from agentd.model.errors import NotFound, Unavailable

HOSTILE = About(
    "text.hostile.v1",
    "red\x1b[31m",
    {
        "type": "object",
        "additionalProperties": False,
        "properties": {"\x1b]0;x": {"type": "string", "description": "bell\x07"}},
    },
    examples=(Example("odd\x1b[0m", {"a": "\x1b[31m it's \u202e"}),),
)


def test_ls_has_every_one_that_works_and_names_the_others(capsys, monkeypatch):
    broken = {"text.bad.v1": Unavailable("capability text.bad.v1 cannot be used", cause="why\x1b")}
    good = (Registry(points=list).get("fs.read.v1"), SimpleNamespace(about=HOSTILE))
    monkeypatch.setattr(Registry, "all", lambda _: Catalogue(good, broken))
    assert cli.main(["capability", "ls"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^fs\.read\.v1 +process +- +read a file", out, re.M)
    assert err == (
        "agentd capability: text.bad.v1: capability text.bad.v1 cannot be used: why\\x1b\n"
    )
    assert "\x1b" not in out
    assert cli.main(["capability", "ls", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["capabilities"]] == ["fs.read.v1", "text.hostile.v1"]
    assert found["broken"]["text.bad.v1"]["cause"] == "why\x1b"


def test_show_is_a_table_and_examples_that_a_shell_reads(capsys):
    assert cli.main(["capability", "show", "fs.edit.v1"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^wall +process or stronger$", out, re.M)
    assert re.search(r"^uses +writes$", out, re.M)
    assert re.search(r"^path +string +required +absolute, or from the workspace$", out, re.M)
    assert re.search(r"^edits\[\]\.count +integer 1\.\.10000 +1 ", out, re.M)
    lines = re.findall(r"^  (agentd call .*)$", out, re.M)
    given = [shlex.split(line) for line in lines]
    examples = Registry(points=list).get("fs.edit.v1").about.examples
    assert [words[:4] for words in given] == [["agentd", "call", "fs.edit.v1", "--params"]] * 4
    assert [json.loads(words[4]) for words in given] == [one.parameters for one in examples]


def test_show_as_json_has_the_schema(capsys):
    assert cli.main(["capability", "show", "fs.read.v1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    about = Registry(points=list).get("fs.read.v1").about
    assert found["schema"] == about.schema and found["needs"]["level"] == "process"
    assert found["bounds"] == {"timeout": 30.0, "output": 24 << 20}


def test_a_third_party_s_words_are_no_control_codes(capsys, monkeypatch):
    monkeypatch.setattr(Registry, "get", lambda _, name: SimpleNamespace(about=HOSTILE))
    assert cli.main(["capability", "show", "text.hostile.v1"]) == 0
    out = capsys.readouterr().out
    assert not set(out) - {"\n"} & set(map(chr, [*range(32), 127, 0x202E]))
    (line,) = re.findall(r"^  (agentd call .*)$", out, re.M)
    assert json.loads(shlex.split(line)[4]) == HOSTILE.examples[0].parameters


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["show"], 2, "no capability given"),
        (["show", "fs.raed.v1"], 125, "did you mean fs.read.v1"),
        (["walk"], 2, "invalid choice"),
    ],
)
def test_what_is_refused(capsys, words, code, text):
    try:
        assert cli.main(["capability", *words]) == code
    except SystemExit as end:
        assert end.code == code
    assert text in capsys.readouterr().err


def test_an_unknown_one_is_not_found():
    with pytest.raises(NotFound):
        Registry().get("no.such.v1")


def test_kinds():
    assert parameters.kind({"type": "array", "items": {"type": "string"}}) == "array of string"
    assert parameters.kind({"enum": ["a", 1]}) == "a | 1"
    assert parameters.kind({"type": ["string", "null"]}) == "string or null"
    assert parameters.kind({"type": "number", "minimum": 0}) == "number 0.."
    assert parameters.kind({}) == "any"


def test_a_schema_that_goes_on_and_on_has_an_end():
    endless: dict[str, object] = {"type": "object"}
    endless["properties"] = {"x": endless}
    assert [row[0] for row in parameters.rows(endless)] == ["x", "x.x", "x.x.x", "x.x.x.x"]
