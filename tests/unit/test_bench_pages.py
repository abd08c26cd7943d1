"""The tables of the pages: written between their markers, and the short one out of the long."""

import ast
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "fresh sandbox, /bin/true, destroyed": "fresh",
    "agentd run -- true, the whole process": "cli",
    "/bin/true in a warm sandbox": "warm",
    "1 GiB of stdout to the host": "stdout",
}


@pytest.fixture
def readme(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("readme")


def block(page: Path) -> str:
    (found,) = re.findall(
        r"<!-- bench: begin -->\n(.*?)\n<!-- bench: end -->", page.read_text(), re.S
    )
    return str(found)


def cases(page: str) -> list[dict[str, Any]]:
    """What the long tables say, as far as the short one needs it."""
    found = []
    for title, unit, body in re.findall(
        r"^\| (.+?) \(([^()]+)\) \| median .*\n\|-.*\n((?:\|.*\n)+)", page, re.MULTILINE
    ):
        key = "idle" if "idle sandboxes, memory each" in title else KEYS.get(title, title)
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in body.splitlines()]
        numbers = [(row[0], row[1].replace(",", "")) for row in rows]
        medians = [
            {"name": name, "median": float(number)}
            for name, number in numbers
            if number != "not measurable"
        ]
        found.append({"key": key, "unit": unit, "rows": medians})
    return found


def test_the_readme_has_the_medians_of_the_page(readme: Any) -> None:
    long = cases(block(ROOT / "docs/benchmarks.md"))
    assert {"fresh", "cli", "warm", "stdout", "idle"} <= {case["key"] for case in long}
    short = block(ROOT / "README.md")
    assert readme.report.as_short({"cases": long}) == short
    assert len(short.splitlines()) == 2 + 5  # its head, and five rows
    assert (ROOT / "README.md").read_text().count("bench: begin") == 1
    assert "(docs/benchmarks.md)" in (ROOT / "README.md").read_text()


def test_the_tables_are_written_between_the_markers(readme: Any, tmp_path: Path) -> None:
    row = {"name": "agentd", "median": 2.5, "p95": 3.0, "ratio": 1.0, "n": 9, "isolates": "all"}
    worse = row | {"name": "runc PSS", "median": -2.67, "p95": -2.67, "ratio": None}
    case = {
        "note": "",
        "skipped": {},
        "targets": [],
        "unit": "ms",
        "title": "fresh",
        "key": "fresh",
    }
    document = {
        "machine": {"cpu": "fast"},
        "cases": [case | {"rows": [row]}, case | {"key": "idle", "unit": "MB", "rows": [worse]}],
    }
    for folder in ("bench/out", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "bench/out/results.json").write_text(json.dumps(document))
    for name in ("README.md", "docs/benchmarks.md"):
        (tmp_path / name).write_text(
            "above\n<!-- bench: begin -->\nold\n<!-- bench: end -->\nbelow\n"
        )
    assert readme.main(tmp_path) == 0
    for name in ("README.md", "docs/benchmarks.md"):
        text = (tmp_path / name).read_text()
        assert text.startswith("above\n") and text.endswith("\nbelow\n") and "old" not in text
    long, short = block(tmp_path / "docs/benchmarks.md"), block(tmp_path / "README.md")
    assert "| agentd | 2.50 | 3.00 | 1.00x | 9 | all |" in long and "not measurable" in long
    assert "-2.67" not in long and "all of it gone (ms) | 2.5 | - | - | - | - |" in short
    (tmp_path / "README.md").write_text("no markers")
    assert readme.main(tmp_path) == 1


def test_a_case_by_itself_has_markers_of_its_own_until_a_whole_run_has_it(
    readme: Any, tmp_path: Path
) -> None:
    row = {"name": "agentd", "median": 2.5, "p95": 3.0, "ratio": 1.0, "n": 9, "isolates": "all"}
    case = {"note": "", "skipped": {}, "targets": [], "unit": "ms", "title": "one", "key": "fork"}
    document = {"machine": {"load": "18.9"}, "cases": [case | {"rows": [row]}]}
    for folder in ("bench/out", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("results", "results-fork", "results-vm"):
        (tmp_path / f"bench/out/{name}.json").write_text(json.dumps(document))
    whole = "<!-- bench: begin -->\nold\n<!-- bench: end -->\n"
    (tmp_path / "README.md").write_text(whole)
    one, end = "<!-- bench fork: begin -->\n", "<!-- bench fork: end -->\n"
    other = "<!-- bench pull: begin -->\nothers\n<!-- bench pull: end -->\n"
    page = tmp_path / "docs/benchmarks.md"
    page.write_text(f"{whole}between\n{one}{end}{other}below\n")
    for _ in range(2):
        assert readme.main(tmp_path, "fork") == 0
        text = page.read_text()
        assert text.startswith(f"{whole}between\n{one}Taken on: load 18.9.\n")
        assert text.endswith(f"{end}{other}below\n")
        assert text.count("| agentd | 2.50 | 3.00 | 1.00x | 9 | all |") == 1
    before = page.read_text()
    assert readme.main(tmp_path, "vm") == 0  # the page has no place for it
    assert page.read_text() == before
    assert readme.main(tmp_path) == 0
    nothing = other.replace("others\n", "")
    assert page.read_text().endswith(f"between\n{one}{end}{nothing}below\n")


def test_what_the_bench_imports_of_agentd_is_there():
    """Inside functions, too, which neither its start nor the type checker looks into."""
    for path in sorted((ROOT / "bench").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("agentd"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    if not hasattr(module, alias.name):  # a module of its own
                        importlib.import_module(f"{node.module}.{alias.name}")


def test_some_cases_in_one_run_have_their_own_tables(
    readme: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = importlib.import_module("run")
    monkeypatch.setattr("sys.argv", ["bench", "--only", "oci,inside,pull,fork"])
    assert run._options().only == ("oci", "inside", "pull", "fork")
    monkeypatch.setattr("sys.argv", ["bench"])
    assert run._options().only == ()
    for wrong in ("nosuch", "oci,nosuch", "oci,", ""):
        monkeypatch.setattr("sys.argv", ["bench", "--only", wrong])
        with pytest.raises(SystemExit):
            run._options()
    markers = re.findall(r"<!-- bench (\w+): begin -->", (ROOT / readme.LONG).read_text())
    assert {"oci", "inside", "pull", "fork"} <= set(markers) <= set(run.CASES)
