"""The documents name what is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_threat_model_names_every_security_test_and_none_that_is_not_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/threat-model.md").read_text()))
    there = {path.stem for path in (ROOT / "tests/security").glob("test_*.py")}
    assert there <= named
    sources = list((ROOT / "tests").rglob("test_*.py"))
    functions = {
        name for path in sources for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named <= {path.stem for path in sources} | functions


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "SECURITY.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
