import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.daemon.config.lines import lines_of


def leaves(tree, path=()):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


# Templates of statements: N is the line that it stands on, K a key never used before.
PAIRS = [
    "K = N",
    "K.'x y'.\"z\\u0041\".w = N",
    "  K . v  =  N  # [no] = header",
    'K = """\na # = [x]\n\\"""\nb""" # c\nK = N',
    "K = '''\n[[t]]\n''''\nK = N",
    'K = ""\nK = N',
    'K = "\\"#"\nK = N',
    "K = {a = N, b.c = N, 'd' = {e = N}, f = []}",
    'K = [ # a ] comment\n  N,\n\n  N, [N,\nN], {g = N}, "]", \n]\nK = N',
    "K = [\n]\nK = 1979-05-27 07:32:00Z\nK = -1e3 # c\nK = N",
    "# K = 1\n\n\tK = N",
    "K = true",
    'K = """"quoted""""\nK = N',
]
HEADERS = ["[K]", "[K.sub.'s s']", "[[K]]", "[[list]]", "[[list.deep]]", "[ K ] # c", '[ "K"."" ]']


@st.composite
def documents(draw):
    text, fresh, line = "", 0, 1
    for template in draw(st.lists(st.sampled_from(PAIRS + HEADERS), max_size=12)):
        if template == "[[list.deep]]" and "[[list]]" not in text:
            continue
        for row in template.split("\n"):
            while "K" in row:
                row = row.replace("K", f"k{fresh}", 1)  # noqa: PLW2901
                fresh += 1
            text += row.replace("N", str(line)) + "\n"
            line += 1
    return text


@given(documents(), st.booleans())
def test_every_value_that_is_its_own_line_number_is_found_there(text, crlf):
    if crlf:
        text = text.replace("\n", "\r\n")
    lines = lines_of(text)
    tree = tomllib.loads(text)
    found = {path: value for path, value in leaves(tree) if type(value) is int}
    assert {path: lines[path] for path in found} == found


@given(documents())
def test_every_path_has_a_line_and_every_line_a_path(text):
    paths = {path[:n] for path, _ in leaves(tomllib.loads(text)) for n in range(1, len(path) + 1)}
    lines = lines_of(text)
    assert paths <= lines.keys()
    assert all(1 <= line <= text.count("\n") for line in lines.values())


def test_tables_and_the_elements_of_arrays_have_lines_too():
    text = "a.b = 1\n[[t]]\nx = 1\n[[t]]\n[t.u]\nx = 2\n[v.w]\n"
    assert lines_of(text) == {
        ("a",): 1,
        ("a", "b"): 1,
        ("t",): 2,
        ("t", 0): 2,
        ("t", 0, "x"): 3,
        ("t", 1): 4,
        ("t", 1, "u"): 5,
        ("t", 1, "u", "x"): 6,
        ("v",): 7,
        ("v", "w"): 7,
    }


@pytest.mark.parametrize("text", ["", "\n", "# only this", "# a\n\n"])
def test_nothing_is_nowhere(text):
    assert lines_of(text) == {}
