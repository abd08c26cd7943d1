import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.capability.inside.python_bundle import MAX_BUNDLE, MAX_TEXT, bounded, bundle_of, clean


@given(st.text(st.characters(), max_size=50), st.integers(0, 60))
def test_clean_text_is_always_json_that_can_be_sent(text: str, most: int) -> None:
    cleaned = clean(text, most)
    assert cleaned.encode().decode() == cleaned
    if text.isascii():
        assert cleaned == text[:most]


def test_a_lone_surrogate_is_spelled_out() -> None:
    assert clean("a\udc80", 10) == "a\\udc80"


def test_all_forms_together_are_bounded_and_the_plain_one_stays() -> None:
    half = "x" * (MAX_BUNDLE // 2 + 1)
    found = bounded({"text/html": half, "text/x": half, "text/plain": "p" * (MAX_TEXT + 9)})
    assert len(found["text/plain"]) == MAX_TEXT
    assert sum(len(text) for text in found.values()) <= MAX_BUNDLE
    assert len(bounded({f"text/{number}": "x" for number in range(100)})) == 16


@pytest.mark.parametrize(
    ("kind", "form", "text"),
    [
        ("image/png", b"\0", base64.b64encode(b"\0").decode()),
        ("application/json", {"a": 1}, json.dumps({"a": 1})),
        ("application/vnd.x+json", [], "[]"),
    ],
)
def test_forms_become_text(kind: str, form: object, text: str) -> None:
    assert bounded({kind: form}) == {kind: text}


def test_what_is_no_form_is_left_out() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert bounded({"a": None, "b": 1, "c+json": {1, 2}, "d+json": loop, "e": object()}) == {}


class Anything:
    """Has every attribute there is, as mocks do."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self


def test_an_object_with_every_method_has_a_plain_form() -> None:
    assert set(bundle_of(Anything())) == {"text/plain"}


def test_a_class_is_not_asked_as_its_objects_are() -> None:
    class Rich:
        def _repr_html_(self) -> str:
            return "html"

    assert set(bundle_of(Rich)) == {"text/plain"}
    assert bundle_of(Rich())["text/html"] == "html"
