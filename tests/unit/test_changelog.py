"""``scripts/changelog``: Unreleased is built of fragments, and no line written by hand is lost."""

import importlib.util
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("towncrier", reason="towncrier is not installed (scripts/setup)")

ROOT = Path(__file__).resolve().parents[2]
FRAGMENTS = ROOT / "changelog.d"


@pytest.fixture(scope="module")
def changelog() -> ModuleType:
    spec = importlib.util.spec_from_file_location("changelog", ROOT / "scripts" / "changelog.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[[str], Path]:
    """A project with this one's settings, one fragment, and an Unreleased with that text."""

    def make(unreleased: str) -> Path:
        shutil.copy(ROOT / "pyproject.toml", tmp_path)
        folder = tmp_path / "changelog.d"
        folder.mkdir()
        shutil.copy(FRAGMENTS / "template.md", folder)
        (folder / "known.daemon.md").write_text("A line of before,\nand its rest.\n")
        (tmp_path / "CHANGELOG.md").write_text(
            f"# Changelog\n\n## Unreleased\n\n{unreleased}\n## 1.0\n\n- the first\n"
        )
        return tmp_path

    return make


def test_each_fragment_has_a_type_that_is_a_heading_and_says_something(
    changelog: ModuleType,
) -> None:
    types = changelog.types(ROOT)
    for path in FRAGMENTS.iterdir():
        if path.name not in ("README.md", "template.md"):
            assert re.fullmatch(rf"[a-z0-9-]+\.({'|'.join(types)})\.md", path.name), path.name
            text = path.read_text()
            assert text.strip() and not text.startswith("- "), path.name


def test_the_page_of_the_fragments_names_each_type_with_its_heading(changelog: ModuleType) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", (FRAGMENTS / "README.md").read_text(), re.M)
    assert dict(rows) == changelog.types(ROOT)


def test_what_towncrier_builds_of_this_trees_fragments_is_read_back_as_they_are(
    changelog: ModuleType,
) -> None:
    types = changelog.types(ROOT)
    built = changelog.entries(changelog.build(ROOT), types)
    assert set(built) == changelog.fragments(FRAGMENTS, types) and len(set(built)) == len(built)


def test_a_line_written_by_hand_becomes_a_fragment_and_no_other_is_lost(
    changelog: ModuleType, checkout: Callable[[str], Path]
) -> None:
    by_hand = "### The daemon\n\n- Written by hand,\n  on two lines.\n\n"
    tree = checkout(f"{by_hand}### The guest agent\n\n- Another.\n")
    changelog.main(tree)
    written = tree / "changelog.d" / "written-by-hand-on-two-lines.daemon.md"
    assert written.read_text() == "Written by hand,\non two lines.\n"
    assert (tree / "CHANGELOG.md").read_text() == (
        "# Changelog\n\n## Unreleased\n\n### The daemon\n\n"
        "- A line of before,\n  and its rest.\n- Written by hand,\n  on two lines.\n\n"
        "### The guest agent\n\n- Another.\n\n## 1.0\n\n- the first\n"
    )
    before = sorted(path.name for path in (tree / "changelog.d").iterdir())
    changelog.main(tree)
    assert sorted(path.name for path in (tree / "changelog.d").iterdir()) == before


@pytest.mark.parametrize(
    ("unreleased", "told"),
    [
        ("### Of nothing\n\n- A line.\n", "no type of fragment has the heading 'Of nothing'"),
        ("- A line.\n", "the line '- A line.' is no entry below a heading"),
    ],
    ids=["heading", "line"],
)
def test_what_could_be_lost_is_refused_and_nothing_is_written(
    changelog: ModuleType, checkout: Callable[[str], Path], unreleased: str, told: str
) -> None:
    tree = checkout(unreleased)
    before = (tree / "CHANGELOG.md").read_text()
    with pytest.raises(ValueError, match=re.escape(told)):
        changelog.main(tree)
    assert (tree / "CHANGELOG.md").read_text() == before
