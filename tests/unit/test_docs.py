"""The documents name what is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_threat_model_has_a_row_for_every_security_test_and_no_other() -> None:
    rows = re.findall(r"\| `(test_\w+)` \|", (ROOT / "docs/threat-model.md").read_text())
    there = {path.stem for path in (ROOT / "tests/security").glob("test_*.py")}
    assert sorted(rows) == sorted(there)


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "SECURITY.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
