import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.model.redact import HIDDEN, Redactor, fields, text

SECRET = "hunter2-hunter2"


def test_a_value_that_was_called_secret_is_hidden_wherever_it_appears() -> None:
    event = {
        "argv": ["curl", "-H", f"x: {SECRET}"],
        "about": {"deep": {"deeper": SECRET}},
        f"name {SECRET}": 1,
        "number": 123456,
    }
    clean = Redactor([SECRET, "123456"]).fields(event)
    assert SECRET not in json.dumps(clean) and "123456" not in json.dumps(clean)
    assert clean["argv"] == ["curl", "-H", f"x: {HIDDEN}"]
    assert SECRET in json.dumps(fields(event))  # nothing else hides it


def test_a_short_secret_is_hidden_where_it_stands_alone() -> None:
    clean = Redactor(["abc", "1"]).fields({"a": "abc", "b": "abcdef", "c": 10, "d": ["abc"]})
    assert clean == {"a": HIDDEN, "b": "abcdef", "c": 10, "d": [HIDDEN]}


def test_the_longest_secret_is_hidden_first() -> None:
    assert Redactor(["hunter", "hunter-and-more"]).text("hunter-and-more") == HIDDEN


def test_lines_of_a_secret_are_hidden_alone() -> None:
    key = "first-line-of-it\nsecond-line-of-it\nx"
    assert Redactor([key]).text("see second-line-of-it, x") == f"see {HIDDEN}, x"


def test_a_secret_longer_than_what_is_kept_leaves_no_beginning() -> None:
    assert "zz" not in Redactor(["z" * 100_000]).text("a" + "z" * 100_000)


@pytest.mark.parametrize(
    ("words", "secret"),
    [
        ("agd_abcdefghijkl_" + "a2" * 26, "a2a2"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", "eyJ"),
        ("Authorization: BEARER abcdefghijk", "abcdef"),
        ("see http://me:pass@host/", "pass"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabcdef\n-----END", "abcdef"),
    ],
)
def test_each_form_is_found_by_the_quick_look_too(words: str, secret: str) -> None:
    assert HIDDEN in text(words) and secret not in text(words)


def test_what_was_left_out_is_said() -> None:
    clean = fields({f"n{i}": i for i in range(70)} | {"list": 0})
    assert clean["..."] == "7 more" and len(clean) == 65
    assert fields({"list": list(range(70))})["list"][-1] == "... 70 items"


def test_the_whole_is_bounded_however_nested() -> None:
    wide: object = "x"
    for _ in range(4):
        wide = [wide] * 64
    assert len(json.dumps(fields({"a": wide}))) < 200_000


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(st.characters(codec=None))
        | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_whatever_is_given_becomes_json(value: object) -> None:
    json.dumps(fields({"a": value})).encode()
    assert "x" * 9 not in json.dumps(Redactor(["x" * 9]).fields({"a": value, "b": "x" * 9}))


def test_surrogates_and_huge_numbers_are_written_out() -> None:
    clean = fields({"a": "\udc80", "b": 2**20_000, "c": 2**63})
    assert clean == {"a": "\\udc80", "b": "an integer of 20001 bits", "c": 2**63}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("a\x9b2J", "a\\x9b2J"),
        ("a\x85b\u2028c\u2029", "a\\x85b\\u2028c\\u2029"),
        ("\u202ea\x7f", "\\u202ea\\x7f"),
        ("tab\tline\nesc\x1b", "tab\tline\nesc\x1b"),
        ("häß 漢字", "häß 漢字"),
    ],
)
def test_what_json_leaves_as_it_is_and_a_terminal_obeys_is_written_out(
    words: str, shown: str
) -> None:
    assert text(words) == shown
    assert fields({"x": words}) == {"x": shown}
