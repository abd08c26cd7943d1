"""The documents name what is there."""

import errno
import re
from pathlib import Path

import yaml

from agentd.auth import signing
from agentd.daemon import config
from agentd.ingest.web.status import ERRNO, STATUS
from agentd.model.errors import Unauthenticated

ROOT = Path(__file__).parents[2]


def test_the_threat_model_names_every_security_test_and_none_that_is_not_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/threat-model.md").read_text()))
    there = {path.stem for path in (ROOT / "tests/security").glob("test_*.py")}
    assert there <= named
    folders = [ROOT / "tests", ROOT / "src/agentd/testing"]
    sources = [path for folder in folders for path in folder.rglob("test_*.py")]
    functions = {
        name for path in sources for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named <= {path.stem for path in sources} | functions


def test_contributing_names_commands_and_rooms_that_are_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    targets = (ROOT / "Makefile").read_text().splitlines()[0].split()
    assert set(re.findall(r"`make (\w+)`", page)) <= set(targets)
    (shown,) = re.findall(r"```\n(.*?)```", page, re.DOTALL)
    rooms = set(re.findall(r"\b([a-z]+)/", shown)) - {"service", "backends", "web", "rest"}
    folders = {path.name for path in (ROOT / "src/agentd").iterdir() if path.is_dir()}
    assert rooms == folders - {"__pycache__"}


def test_the_hooks_run_what_make_check_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    checked = (ROOT / "scripts/check").read_text()
    for hook in hooks:
        assert hook["entry"] in checked


def test_links_between_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_api_page_has_every_code_at_its_status() -> None:
    table = (ROOT / "docs/api.md").read_text().partition("| status | codes |")[2]
    rows = dict(re.findall(r"^\| ([\d, ]+) \| (.*) \|$", table, re.M))
    signatures = [
        kind.code
        for kind in vars(signing).values()
        if isinstance(kind, type) and issubclass(kind, Unauthenticated)
    ]
    for code, status in [*STATUS.items(), *((code, 401) for code in signatures)]:
        (row,) = [text for numbers, text in rows.items() if str(status) in numbers.split(", ")]
        assert f"`{code}`" in row, code


def test_the_api_page_has_every_errno_at_its_status() -> None:
    table = (ROOT / "docs/api.md").read_text().partition("| status | codes |")[2]
    rows = dict(re.findall(r"^\| ([\d, ]+) \| (.*) \|$", table, re.M))
    for number, status in ERRNO.items():
        assert errno.errorcode[number] in rows[str(status)]


def test_the_records_of_decisions_are_numbered_without_gaps() -> None:
    records = sorted((ROOT / "docs/adr").glob("*.md"))
    assert [int(page.name[:4]) for page in records] == list(range(1, len(records) + 1))
    for number, page in enumerate(records, 1):
        assert page.read_text().startswith(f"# {number}. "), page


def test_the_settings_of_what_may_be_done_are_those_that_there_are(tmp_path: Path) -> None:
    section = (ROOT / "docs/service.md").read_text().partition("## What may be done")[2]
    (settings,) = re.findall(r"^```toml\n(.*?)^```", section.partition("\n## ")[0], re.M | re.S)
    for name in ("policy", "signers"):
        (tmp_path / name).mkdir(mode=0o755)
    (tmp_path / "company-ca.pem").touch()
    (tmp_path / "agentd.toml").write_text(settings.replace("/etc/agentd", str(tmp_path)))
    assert config.check(str(tmp_path / "agentd.toml"), {}) == []
