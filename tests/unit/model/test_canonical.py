import enum
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.model.canonical import MAX_DEPTH, MAX_WHOLE, canonical, loads_strict, number
from agentd.model.errors import InvalidInput

# RFC 8785, Appendix B: the bits of a double, and its text.
RFC_NUMBERS = [
    ("0000000000000000", "0"),
    ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("ffefffffffffffff", "-1.7976931348623157e+308"),
    ("4340000000000000", "9007199254740992"),
    ("c340000000000000", "-9007199254740992"),
    ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"),
    ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"),
    ("444b1ae4d6e2ef4e", "999999999999999700000"),
    ("444b1ae4d6e2ef4f", "999999999999999900000"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"),
    ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"),
    ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
]
# RFC 8785 §3.2.2
RFC_INPUT = rb"""{
  "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
  "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
  "literals": [null, true, false]
}"""
RFC_OUTPUT = (
    '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
    '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
)


def double(bits: str) -> float:
    value: float = struct.unpack(">d", bytes.fromhex(bits))[0]
    return value


@pytest.mark.parametrize(("bits", "text"), RFC_NUMBERS)
def test_numbers_of_the_rfc(bits: str, text: str) -> None:
    value = double(bits)
    assert canonical(value) == text.encode()
    assert float(loads_strict(text.encode())) == value


@pytest.mark.parametrize("bits", ["7fffffffffffffff", "7ff0000000000000", "fff0000000000000"])
def test_what_is_no_number_is_refused(bits: str) -> None:
    with pytest.raises(InvalidInput, match="is no JSON number"):
        canonical({"a": [double(bits)]})


def test_the_examples_of_the_rfc() -> None:
    assert canonical(loads_strict(RFC_INPUT)) == RFC_OUTPUT.encode()
    # §3.2.3: keys by their UTF-16 code units, not by their code points
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\x80", "\u00f6"]
    made = canonical(dict.fromkeys(keys, 0)).decode()
    order = ["\\r", "1", "\x80", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert made == "{" + ",".join(f'"{key}":0' for key in order) + "}"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_WHOLE, MAX_WHOLE)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(JSON)
def test_it_is_read_as_the_same_value_and_written_the_same_again(value: object) -> None:
    made = canonical(value)
    assert json.loads(made, parse_int=float) == value  # as ECMAScript reads it
    assert loads_strict(made) == value
    assert canonical(loads_strict(made)) == made


@given(JSON, st.randoms(use_true_random=False))
def test_neither_order_nor_space_matters(value: object, random: object) -> None:
    def shuffled(node: object) -> object:
        if isinstance(node, dict):
            items = [(key, shuffled(item)) for key, item in node.items()]
            random.shuffle(items)  # type: ignore[attr-defined]
            return dict(items)
        return [shuffled(item) for item in node] if isinstance(node, list) else node

    text = json.dumps(shuffled(value), indent=2, ensure_ascii=True)
    assert canonical(loads_strict(text.encode())) == canonical(value)


@given(st.dictionaries(st.text(max_size=3), st.just(0), max_size=8))
def test_keys_stand_in_the_order_of_their_utf_16_code_units(value: dict[str, int]) -> None:
    keys = list(json.loads(canonical(value)))
    assert keys == sorted(value, key=lambda key: key.encode("utf-16-be"))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_double_is_written_so_that_it_can_be_read_back(value: float) -> None:
    text = number(value)
    assert float(text) == value
    digits = text.partition("e")[0].lstrip("-0.").replace(".", "").rstrip("0")
    assert len(digits) <= 17
    assert not text.endswith(".0") and "E" not in text


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_whatever_comes_is_a_value_or_invalid(data: bytes) -> None:
    try:
        value = loads_strict(data)
    except InvalidInput:
        return
    assert loads_strict(canonical(value)) == value


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"a": 1, "b": {"x": 1, "x": 1}}', "'x' is there twice"),
        (b'{"a": 1, "\\u0061": 2}', "'a' is there twice"),
        (b"9007199254740993", "9007199254740993 is beyond"),
        (b"-9007199254740993", "beyond"),
        (b"1000000000000000000000", "beyond"),  # as a double it is 1e+21
        (b"1" * 5000, "beyond"),
        (b"1e400", "larger than a double"),
        (b"-1e400", "larger than a double"),
        (b"1." + b"0" * 5000, "larger than a double"),
        (b"NaN", "NaN is no JSON number"),
        (b'{"a": -Infinity}', "no JSON number"),
        (b'"\\ud800"', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b'"\xed\xa0\x80"', "no JSON"),
        (b"\xff\xfe1\x00", "no JSON"),  # UTF-16
        (b"\xef\xbb\xbf1", "no JSON"),
        (b"[1] x", "no JSON"),
        (b"[1,]", "no JSON"),
        (b"01", "no JSON"),
        (b"'a'", "no JSON"),
        (b'"a\nb"', "no JSON"),
        (b"", "no JSON"),
        (b"[" * 65 + b"]" * 65, "deeper than 64"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "deeper than 64"),
        (b"[" * 100_000, "deeper than 64"),
    ],
)
def test_what_is_refused_when_it_is_read(data: bytes, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        loads_strict(data)


def test_what_is_read_is_bounded() -> None:
    assert loads_strict(b'"abc"', limit=5) == "abc"
    with pytest.raises(InvalidInput, match="has 6 bytes, and at most 5"):
        loads_strict(b'"abcd"', limit=5)
    deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert canonical(loads_strict(deep)) == deep
    wide = b"[" + b",".join([b"[]"] * 1000) + b"]"
    assert canonical(loads_strict(wide)) == wide


class Colour(enum.IntEnum):
    RED = 1


CYCLE: list[object] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({1: 2}, "texts as keys"),
        ({None: 2}, "texts as keys"),
        ({"a": 1, 2: 1}, "texts as keys"),
        (1 << 53, "of 54 bits is beyond"),
        (-(1 << 53), "beyond"),
        ([1 << 100_000], "of 100001 bits is beyond"),
        ("\ud800", "surrogate"),
        ({"\udfff": 1}, "surrogate"),
        (["a\udc00b"], "surrogate"),
        (b"a", "a bytes is no JSON value"),
        ({"a": {1, 2}}, "a set is no JSON value"),
        (Colour.RED, "a Colour is no JSON value"),
        (CYCLE, "deeper than 64"),
    ],
)
def test_what_is_refused_when_it_is_written(value: object, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        canonical(value)
