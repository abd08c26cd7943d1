import json

import pytest

from agentd.policy.store import PolicyStore

MODULES = ["base.rego"]


@pytest.fixture
def bundle(tmp_path):
    """Writes a bundle of these files; its path."""

    def write(rules="", values=None, name="bundle", files=(), **manifest):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        module = f"package agentd\n\nimport rego.v1\n\n{rules}\n"
        written = {"base.rego": module, **dict(files)}
        if values is not None:
            written["data.json"] = json.dumps(values)
        plain = {
            "name": name,
            "modules": [n for n in written if n.endswith(".rego") and "_test" not in n],
            "data": ["data.json"] if values is not None else [],
        }
        written.setdefault("manifest.json", json.dumps({**plain, **manifest}))
        for file, text in written.items():
            (folder / file).write_text(text)
            (folder / file).chmod(0o644)
        return str(folder)

    return write


@pytest.fixture
def store():
    """Opens stores, and closes them."""
    opened = []

    def open_(where, **options):
        opened.append(PolicyStore(where, **{"workers": 1, **options}))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()
