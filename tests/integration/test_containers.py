"""The table in docs/containers.md, row by row in a real container."""

import json
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests import combinations
from tests.containers import minimal, page
from tests.containers.podman import Podman, podman
from tests.vm.debian import Unavailable

_HERE = Path(__file__).resolve().parents[1]
_STEPS = _HERE / "containers/steps.py"
_DOCKER = ["--security-opt", f"seccomp={_HERE / 'data/docker-seccomp.json'}"]
_AT_ONCE = 2
#: Each container once, and each answer that the table has, for a container takes five seconds;
#: make test-combinations has every row.
OF_EVERY_RUN = {
    "as it comes, docker, user",
    "/proc unmasked, podman, root",
    "/proc unmasked, no seccomp, either, user",
    "/proc unmasked, SYS_ADMIN, docker, root",
    "privileged, either, root",
}


def chosen() -> list[page.Row]:
    return [row for row in page.rows() if combinations.ALL or str(row) in OF_EVERY_RUN]


def options(row: page.Row) -> list[str]:
    given = page.options()[row.container]
    if row.engine == "docker":
        given = [*given, *_DOCKER]
    return [*given, *([] if row.who == "root" else ["--user", "1000:1000"])]


def tried(engine: Podman, row: page.Row) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="volume-") as volume:
        Path(volume).chmod(0o777)
        mounts = ["-v", f"{_STEPS}:/steps.py:ro", "-v", f"{volume}:/volume"]
        done = engine.run([*options(row), *mounts], ["python3", "/steps.py"])
    assert done.returncode == 0, f"{row}: {done.stderr}"
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def differences(row: page.Row, told: dict[str, Any]) -> list[str]:
    """From the page, and of what doctor says from what there is."""
    words = told["words"]
    works = {name: told["found"].get(name, "no") for name in row.works}
    found = [
        f"{row}: {name}: {works[name]}, not {expected}: {words.get(name)}"
        for name, expected in row.works.items()
        if works[name] != expected
    ]
    doctor = told["doctor"]
    walls = {wall["name"]: wall["usable"] for wall in doctor["backends"]}
    if {doctor["run"]["blocker"] is None, walls["linux"]} != {works["run"] == "yes"}:
        found.append(f"{row}: doctor says {doctor['run']}, and: {words['run']}")
    if walls["landlock"] != (works["process"] == "yes"):
        found.append(f"{row}: doctor says landlock {walls['landlock']}, and: {words['process']}")
    if works["run"] == "no" and (why := misleads(row, words["run"])):
        found.append(f"{row}: {why}: {words['run']}")
    return found


def misleads(row: page.Row, refusal: str) -> str:
    """Why the refusal does not lead on; "" if it does: to the wall that works, and to the next."""
    if "--isolation process works here" not in refusal:
        return "it names no wall that works"
    advice = refusal.partition("podman run ")[2]
    words = re.findall(r"--[\w-]+ [\w=-]+", advice)
    of_the_page = " ".join(word for given in page.options().values() for word in given)
    if not words or any(word not in of_the_page for word in words):
        return f"it says {words}, which the page does not"
    if all(word in " ".join(options(row)) for word in words):
        return f"it says {words}, which was said"
    return ""


@pytest.mark.root
@pytest.mark.timeout(1800)  # the root is made once for a machine
def test_what_works_in_a_container_is_what_the_page_says() -> None:
    rows = chosen()
    try:
        with (
            minimal.root() as root,
            podman(root) as engine,
            ThreadPoolExecutor(_AT_ONCE) as threads,
        ):
            told = list(threads.map(lambda row: tried(engine, row), rows))
    except Unavailable as error:
        pytest.skip(f"containers: {error}")
    assert [
        line for row, each in zip(rows, told, strict=True) for line in differences(row, each)
    ] == []


def test_the_page_has_every_container_for_root_and_for_a_user() -> None:
    rows = page.rows()
    named = {row.container for row in rows}
    assert named == set(page.options())
    for name in named:
        assert {row.who for row in rows if row.container == name} == {"root", "user"}


def test_every_run_has_each_container_and_each_answer_of_the_page() -> None:
    rows = chosen()
    assert {row.container for row in rows} == set(page.options())
    assert {tuple(row.works.values()) for row in rows} == {
        tuple(row.works.values()) for row in page.rows()
    }
