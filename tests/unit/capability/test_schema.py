import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.capability import schema
from agentd.model.capability import About
from agentd.model.errors import InvalidInput

SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["path"],
    "properties": {
        "path": {"type": "string", "maxLength": 10, "description": "where it is"},
        "count": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3},
        "kind": {"enum": ["a", "b"]},
        "word": {"type": "string", "pattern": "^(a+)+$"},
        "tags": {"type": "array", "maxItems": 2, "items": {"type": "string"}, "default": []},
        "edits": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["search"],
                "properties": {
                    "search": {"type": "string"},
                    "count": {"type": "integer", "default": 1},
                },
            },
        },
    },
}
ABOUT = About("test.it.v1", "a test's", SCHEMA)


def refused(parameters: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        schema.check(ABOUT, parameters)
    return str(caught.value)


def test_defaults_are_filled_in_at_every_depth() -> None:
    checked = schema.check(ABOUT, {"path": "x", "edits": [{"search": "y"}]})
    assert checked == {
        "path": "x",
        "count": 3,
        "tags": [],
        "edits": [{"search": "y", "count": 1}],
    }


def test_what_is_given_stays_and_is_the_caller_s_own() -> None:
    given = {"path": "x", "count": 5, "edits": [{"search": "y", "count": 2}]}
    before = repr(given)
    checked = schema.check(ABOUT, given)
    assert checked["count"] == 5 and checked["edits"][0]["count"] == 2
    checked["edits"][0]["count"] = 7
    checked["tags"].append("z")
    assert repr(given) == before
    assert schema.check(ABOUT, {"path": "x"})["tags"] == []


def test_an_integer_may_be_written_as_a_float() -> None:
    count = schema.check(ABOUT, {"path": "x", "count": 4.0})["count"]
    assert type(count) is int and count == 4


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "parameter path is missing (add it: text, where it is)"),
        ({"path": 5}, "parameter path is not text (give text)"),
        ({"path": "x" * 11}, "parameter path is longer than 10 characters (give at most 10)"),
        ({"path": "x", "pth": 1}, "parameter pth is unknown (did you mean path?)"),
        ({"path": "x", "zzz": 1}, "parameter zzz is unknown (leave it out; there are: path, "),
        ({"path": "x", "count": 0}, "parameter count is below 1 (give 1 or more)"),
        ({"path": "x", "count": 10}, "parameter count is above 9 (give 9 or less)"),
        ({"path": "x", "count": 1.5}, "parameter count is not an integer (give an integer)"),
        ({"path": "x", "count": True}, "parameter count is not an integer (give an integer)"),
        ({"path": "x", "kind": "c"}, "parameter kind is none of those that there are (use one of"),
        ({"path": "x", "tags": ["a"] * 3}, "parameter tags has more than 2 items"),
        ({"path": "x", "edits": [{"search": "a"}, {}]}, "parameter edits[1].search is missing"),
        ({"path": "x", "edits": [{"search": "", "n": 1}]}, "parameter edits[0].n is unknown"),
        ({"path": "x", "edits": [{"search": 1}]}, "parameter edits[0].search is not text"),
        ([], "the parameters of test.it.v1 are not an object"),
    ],
)
def test_a_refusal_names_the_parameter_the_mistake_and_the_fix(parameters: Any, words: str) -> None:
    assert words in refused(parameters)


def test_a_refusal_does_not_repeat_what_may_be_a_secret() -> None:
    assert "hunter2" not in refused({"path": "hunter2-hunter2"})
    assert "hunter2" not in refused({"path": "x", "kind": "hunter2"})


def test_a_refusal_of_a_name_is_short_and_without_control_codes() -> None:
    text = refused({"path": "x", "\x1b[31m" + "y" * 100_000: 1})
    assert len(text) < 500 and "\x1b" not in text


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"path": nested(100_000)}, "over 64 levels"),
        ({"path": "x" * (9 << 20)}, "over 8 MiB"),
        ({"path": "\u20ac" * (3 << 20)}, "over 8 MiB"),
        ({"x" * (9 << 20): 1}, "over 8 MiB"),
        ({"path": [0] * 300_000}, "over 250000 values"),
        ({"path": "\ud800"}, "half of a surrogate pair"),
        ({"\ud800": 1}, "half of a surrogate pair"),
        ({"path": math.inf}, "what JSON has no value for: float"),
        ({"path": math.nan}, "what JSON has no value for: float"),
        ({"path": 1 << 65}, "what JSON has no value for: int"),
        ({"path": b"bytes"}, "what JSON has no value for: bytes"),
        ({"path": {1: 2}}, "a name that is no text"),
    ],
)
def test_the_bounds_come_before_the_schema(parameters: Any, words: str) -> None:
    assert words in refused(parameters)


def test_a_list_that_holds_itself_has_an_end() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert "over 64 levels" in refused({"path": endless})


def test_as_deep_as_may_be() -> None:
    schema.bound({"path": nested(62)}, "it")
    with pytest.raises(InvalidInput):
        schema.bound({"path": nested(63)}, "it")


def test_a_pattern_of_a_schema_takes_no_exponential_time() -> None:
    # Python's re, and a backtracking engine, would not be done with this in a lifetime.
    assert "parameter word does not look as it should" in refused(
        {"path": "x", "word": "a" * 50_000 + "b"}
    )


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"type": "object"}, "it lets unknown parameters through"),
        ({"type": "object", "additionalProperties": True}, "it lets unknown parameters through"),
        ({"type": "object", "additionalProperties": {}}, "it lets unknown parameters through"),
        ({"additionalProperties": False}, 'its "type" is not "object"'),
        ({"type": "object", "additionalProperties": False, "properties": []}, '"properties"'),
        (
            {"type": "object", "additionalProperties": False, "title": "x" * (257 << 10)},
            "it is over 262144 bytes",
        ),
    ],
)
def test_a_schema_that_cannot_be_used(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be used") as caught:
        schema.check_schema(About("test.it.v1", "", wrong))
    assert why in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "nothing"},
        {"pattern": "("},
        # What only an engine that backtracks can do.
        {"pattern": "^(?=a)"},
        {"pattern": "(a)\\1"},
    ],
)
def test_what_is_no_schema(wrong: dict[str, Any]) -> None:
    about = About("test.it.v1", "", {**SCHEMA, "properties": {"path": wrong}})
    with pytest.raises(InvalidInput, match="is not a JSON Schema"):
        schema.check(about, {"path": "x"})


def test_a_schema_reads_no_file_and_asks_no_server(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text('{"type": "string"}')
    for where in (f"file://{tmp_path}/text.json", "http://127.0.0.1:9/text.json"):
        about = About("test.it.v1", "", {**SCHEMA, "properties": {"path": {"$ref": where}}})
        with pytest.raises(InvalidInput, match="is not a JSON Schema"):
            schema.check(about, {"path": "x"})


def test_it_is_compiled_once() -> None:
    assert schema.validator(ABOUT) is schema.validator(About("test.it.v1", "", dict(SCHEMA)))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-20, 20) | st.floats(-5, 5) | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["search", "count", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*SCHEMA["properties"], "other"]), VALUES, max_size=4))
def test_it_takes_what_another_validator_takes(parameters: dict[str, Any]) -> None:
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(parameters)
    try:
        checked = schema.check(ABOUT, parameters)
    except InvalidInput:
        assert not valid
    else:
        assert valid
        assert jsonschema.Draft202012Validator(SCHEMA).is_valid(checked)
        assert schema.check(ABOUT, checked) == checked
