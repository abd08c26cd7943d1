import re
import subprocess
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agentd.capability.builtin.diff import MAX_BLOCK, Span, replaced, unified

HEAD = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@\n")
# Others use the machine, too: a slow moment is no failure.
BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def edited(draw: st.DrawFn) -> tuple[str, list[Span]]:
    """A text, and replacements in it in order."""
    old = draw(st.text(alphabet="ab\n\r", min_size=1, max_size=80))
    cuts = sorted(draw(st.sets(st.integers(0, len(old)), max_size=10)))
    pairs = zip(cuts[::2], cuts[1::2], strict=False)
    new = st.text(alphabet="xy\n", max_size=5)
    return old, [Span(start, end, draw(new)) for start, end in pairs]


def applied(old: str, diff: str) -> str:
    """As patch does it, and stricter: nothing may be anywhere else than it says."""
    lines = old.split("\n")
    lines = [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    parts = HEAD.split(diff)
    made: list[str] = []
    at = 0
    for index in range(1, len(parts), 5):
        start, count, new_start, new_count = (
            1 if part is None else int(part) for part in parts[index : index + 4]
        )
        body = re.findall(r"([ +-][^\n]*\n)(\\ [^\n]*\n)?", parts[index + 4])
        found = [line[:-1] if mark else line for line, mark in body]
        first = start - 1 if count else start
        made += lines[at:first]
        assert len(made) == (new_start - 1 if new_count else new_start)
        before = [line[1:] for line in found if line[0] in " -"]
        after = [line[1:] for line in found if line[0] in " +"]
        assert lines[first : first + count] == before and len(before) == count
        assert len(after) == new_count
        made += after
        at = first + count
    return "".join(made + lines[at:])


@BUSY
@given(edited())
@example(("a\na", [Span(1, 3, "")]))
@example(("a\n\n\n\nb\n", [Span(1, 2, ""), Span(2, 3, ""), Span(3, 4, "")]))
@example(("a\n" * 20, [Span(0, 1, "x"), Span(38, 40, "")]))
def test_the_diff_makes_the_new_text_of_the_old(case: tuple[str, list[Span]]) -> None:
    old, spans = case
    diff, cut = unified(old, spans, "f", 1 << 20)
    assert not cut
    assert applied(old, diff) == replaced(old, spans)
    assert bool(diff) == (replaced(old, spans) != old)


@BUSY
@given(edited())
@example(("aaaa\naa\naaa\n", [Span(0, 2, ""), Span(4, 5, ""), Span(8, 9, "")]))
def test_a_line_that_is_the_same_is_at_most_context(case: tuple[str, list[Span]]) -> None:
    old, spans = case
    diff, _ = unified(old, spans, "f", 1 << 20)
    if "\\ No newline" in diff:  # two lines may differ by that alone
        return
    for block in re.findall(r"(?m)((?:^-[^\n]*\n)+)((?:^\+[^\n]*\n)+)", diff.partition("@@")[2]):
        removed, added = (part.split("\n")[:-1] for part in block)
        assert removed[0][1:] != added[0][1:]


def test_git_takes_it(tmp_path: Path) -> None:
    old = "".join(f"line {n}\n" for n in range(100)) + "end"
    spans = [Span(0, 4, "LINE"), Span(300, 330, "new\ntext\n"), Span(len(old) - 3, len(old), "e")]
    (tmp_path / "f").write_text(old)
    diff, _ = unified(old, spans, "f", 1 << 20)
    subprocess.run(["git", "apply", "-"], input=diff.encode(), cwd=tmp_path, check=True)
    assert (tmp_path / "f").read_text() == replaced(old, spans)


def test_it_is_bounded_and_says_so() -> None:
    old = "a\n" * 1000
    spans = [Span(n * 20, n * 20 + 1, "b") for n in range(100)]
    diff, cut = unified(old, spans, "f", 500)
    assert cut and len(diff) == 500
    large = "a" * (MAX_BLOCK + 1)
    assert unified(
        "x\n" + "y\n" * 9 + large, [Span(0, 1, "z"), Span(30, 31, "b")], "f", 1 << 20
    ) == (
        "--- a/f\n+++ b/f\n@@ -1,4 +1,4 @@\n-x\n+z\n y\n y\n y\n",
        True,
    )


def test_ten_thousand_lines_joined_into_one() -> None:
    # Each replacement makes the next line a part of the same one.
    old = "a\n" * 10_000
    diff, cut = unified(old, [Span(2 * n + 1, 2 * n + 2, "") for n in range(10_000)], "f", 1 << 20)
    assert not cut and diff.endswith("+" + "a" * 10_000 + "\n\\ No newline at end of file\n")


def test_a_name_does_not_reach_a_terminal_as_control_codes() -> None:
    assert "\x1b" not in unified("a", [Span(0, 1, "b")], "\x1b[31m\n", 100)[0]
