"""The door suite over agentd's own door and the example's; and over doors that lie in one thing
each, every one of which it must catch by the cases that name it, and by none that names another:
of those every run asks one of each lie, and make test-combinations all."""

import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests import combinations

ROOT = Path(__file__).resolve().parents[2]
LYING = ROOT / "tests/doors"
#: What fails, by the lie: all cases of a test, or of those that are named the one.
CAUGHT = {
    "scopes": {
        "test_without_its_scope_it_is_refused",
        "test_a_call_needs_the_scope_of_its_capability",
        "test_what_is_refused_has_no_start_and_one_denial",
        "test_a_refusal_tells_what_and_how_to_mend_it[forbidden]",
        "test_a_repeat_is_authorised_again",
    },
    "nobody": {
        "test_without_credentials_there_is_nothing",
        "test_with_wrong_credentials_there_is_nothing",
        "test_a_key_that_was_revoked_opens_nothing_more",
        "test_a_refusal_tells_what_and_how_to_mend_it[unauthenticated]",
    },
    "remembers": {
        "test_a_key_that_was_revoked_opens_nothing_more",
        "test_the_gatekeeper_is_asked_once_a_request",
        "test_who_comes_too_fast_is_told_when_to_come_again",
    },
    "twice_asked": {"test_the_gatekeeper_is_asked_once_a_request"},
    "others": {
        "test_anothers_sandbox_is_as_one_that_never_was",
        "test_the_list_has_ones_own_alone",
        "test_anothers_key_is_anothers",
        "test_a_refusal_tells_what_and_how_to_mend_it[not_found]",
    },
    "tells_whose": {"test_anothers_sandbox_is_as_one_that_never_was"},
    "leaks": {"test_there_is_one_start_and_one_end[read_file]"},
    "twice_done": {
        "test_there_is_one_start_and_one_end[read_file]",
        "test_what_is_refused_has_no_start_and_one_denial[read_file]",
    },
    "output": {
        "test_output_is_whole_and_in_order",
        "test_every_byte_is_told_as_it_is",
        "test_what_is_written_right_before_the_end_is_there",
    },
    "lines": {"test_every_byte_is_told_as_it_is"},
    "cursor": {f"test_a_cursor_goes_on_at_exactly_its_byte[{n}]" for n in (1, 5, 9)},
    "exit": {f"test_an_exit_code_is_told[{code}]" for code in (1, 42, 255)},
    "fix": {"test_a_refusal_tells_what_and_how_to_mend_it"},
    "undecided": {"test_what_the_policy_cannot_decide_is_told_as_undecided"},
    "hanging_up": {"test_what_its_client_waited_for_ends_or_goes_on_as_the_door_says"},
    "keys": {
        "test_it_is_done_once_and_told_again",
        "test_the_same_key_with_another_request_is_refused",
        "test_one_sandbox_is_made",
    },
    "denied": {
        "test_what_the_policy_denies_is_told_as_denied",
    },
    "stderr": {"test_stderr_is_apart"},
    "timeout": {"test_a_timeout_is_told_as_one"},
    "again": {"test_who_comes_too_fast_is_told_when_to_come_again"},
    "files": {
        "test_a_large_file_arrives_whole",
        "test_a_file_is_read_as_it_was_written",
        "test_it_is_done_once_and_told_again[write_file]",
    },
    "stdin": {"test_stdin_in_pieces_arrives_in_order"},
}
_CASE = re.compile(
    r"^(?P<how>PASSED|FAILED|ERROR) \S*?::(?P<test>\w+)\[(?P<door>rest|lies-\w+)"
    r"(-(?P<case>.*?))?\]",
    re.M,
)


# As the program of that name: python -m would look for modules in the folder by itself.
_PYTEST = "import sys, pytest; sys.path.remove(''); sys.exit(pytest.main())"


def install(folder: Path, module: str, points: dict[str, str]) -> None:
    """A distribution with these doors, to be found from that folder."""
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = "".join(f"{name} = {module}:{attribute}\n" for name, attribute in points.items())
    (info / "entry_points.txt").write_text(f"[agentd.ingests]\n{lines}")


def suite(folder: Path, *words: str, path: Iterable[Path] = ()) -> tuple[int, str]:
    """``pytest`` in that folder."""
    env = dict(os.environ)
    before = [env["PYTHONPATH"]] if env.get("PYTHONPATH") else []
    env["PYTHONPATH"] = os.pathsep.join([str(folder), *map(str, path), *before])
    env["COLUMNS"] = "1000"  # what failed is told whole
    ran = subprocess.run(
        [sys.executable, "-c", _PYTEST, "-q", "-p", "no:cacheprovider", *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=env,
        timeout=1700,
        check=False,
    )
    return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.first
@pytest.mark.timeout(1800)  # four minutes where nothing else is at work
@pytest.mark.parametrize("half", ["one", "other"])
def test_agentds_own_door_passes_and_each_lie_is_caught(tmp_path: Path, half: str) -> None:
    """In two halves of the lies, which may run beside each other; one has agentd's own, too."""
    lies = sorted(CAUGHT)[half == "one" :: 2]
    install(tmp_path, "lying_doors", {f"lies-{lie}": lie for lie in lies})
    every = cases(tmp_path)
    assert len(every) > 100
    caught = {lie: {one for one in every if is_of(one, names)} for lie, names in CAUGHT.items()}
    others = set(every) if combinations.ALL else {min(named) for named in caught.values()}
    asked = {f"lies-{lie}": caught[lie] | others for lie in lies}

    words = ["--pyargs"]
    if half == "one":
        asked["rest"] = set(every)
        words += ["--door", "agentd.testing.doors.rest:Rest"]
    for lie in lies:
        words += ["--door", f"lying_drivers:{lie}"]
    words += ["--door-patience", "25", "-rpfE", "--tb=line"]
    for door, names in asked.items():
        words += [f"{every[name]}::{of_door(name, door)}" for name in sorted(names)]
    _, said = suite(tmp_path, *words, path=[LYING])

    outcomes = told(said)
    assert set(outcomes) == set(asked), said[-3000:]
    wrong = {}
    for door, found in outcomes.items():
        expected = caught.get(door.removeprefix("lies-"), set())
        failed = {name for name, how in found.items() if how != "PASSED"}
        if failed != expected or set(found) != asked[door]:
            wrong[door] = {"too many": failed - expected, "too few": expected - failed}
    unexpected = {of_door(name, door) for door, one in wrong.items() for name in one["too many"]}
    why = [line for line in said.splitlines() if any(f"::{name}" in line for name in unexpected)]
    assert wrong == {}, "\n".join(why) + f"\n{said[:5000]}"


def cases(folder: Path) -> dict[str, str]:
    """The module of each, by the case's name without its door."""
    words = ("--collect-only", "--pyargs", "agentd.testing.doors")
    _, said = suite(folder, *words, "--door", "agentd.testing.doors.rest:Rest")
    found = re.finditer(r"^\S*?(\w+)\.py::(\w+)\[rest(?:-(.*))?\]$", said, re.M)
    return {
        name + (f"[{case}]" if case else ""): f"agentd.testing.doors.{module}"
        for module, name, case in (one.groups() for one in found)
    }


def is_of(case: str, names: Iterable[str]) -> bool:
    return case in names or case.partition("[")[0] in names


def of_door(case: str, door: str) -> str:
    name, _, rest = case.partition("[")
    return f"{name}[{door}-{rest}" if rest else f"{name}[{door}]"


def told(said: str) -> dict[str, dict[str, str]]:
    """By door and case, how it ended."""
    outcomes: dict[str, dict[str, str]] = defaultdict(dict)
    for found in _CASE.finditer(said):
        name = found["test"] + (f"[{found['case']}]" if found["case"] else "")
        outcomes[found["door"]][name] = found["how"]
    return outcomes


def test_who_hangs_up_has_what_the_door_says_of_itself(tmp_path: Path) -> None:
    """A door may end commands or leave them to themselves, but not say the one and do the other."""
    install(tmp_path, "lying_doors", {"lies-hanging_up": "hanging_up"})
    words = ["--pyargs", "agentd.testing.doors", "-k", "its_client_waited_for", "-rpfE"]
    for driver in ("TellsTheTruth", "SaysItDetaches"):
        words += ["--door", f"lying_drivers:{driver}"]
    _, said = suite(tmp_path, *words, "--door-patience", "25", path=[LYING])
    (name,) = CAUGHT["hanging_up"]
    assert told(said) == {"lies-hanging_up": {name: "PASSED"}, "rest": {name: "FAILED"}}, said


def test_the_section_of_the_page_is_followed_to_the_letter(tmp_path: Path) -> None:
    section = (ROOT / "docs/doors.md").read_text().partition("\n## Test your door\n")[2]
    (driver,) = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    (command,) = re.findall(r"^```console\n\$ pytest (.*?)\n```", section, re.M | re.S)
    (tmp_path / "hooks_driver.py").write_text(driver)
    install(tmp_path, "agentd_door_hooks", {"hooks": "mount"})
    code, said = suite(tmp_path, *command.split(), path=[ROOT / "examples/agentd-door-hooks"])
    assert code == 0, said
    assert re.search(r"^\d+ passed, \d+ skipped in ", said, re.M), said
    assert "the door hooks does not claim: read_file" in said
    assert "hooks does not claim: run\n" not in said


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        ("nosuch:X", "--door nosuch:X: No module named 'nosuch' (write it as MODULE:DRIVER)"),
        ("not_installed", "has no attribute ''"),
        (":X", "(write it as MODULE:DRIVER)"),
        ("os:path", "--door os:path: it is no Driver that names a door"),
        ("not_installed:Closed", "there is no door 'closed'"),
    ],
)
def test_without_a_door_the_run_ends_at_once(tmp_path: Path, driver: str, said: str) -> None:
    text = "from agentd.testing.doors import Driver\nclass Closed(Driver):\n    door = 'closed'\n"
    (tmp_path / "not_installed.py").write_text(text)
    code, out = suite(tmp_path, "--pyargs", "agentd.testing.doors", "--door", driver)
    assert code == 4 and said in out, out[-2000:]
    assert "errors" not in out
