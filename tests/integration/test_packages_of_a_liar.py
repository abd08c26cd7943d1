"""A sandbox whose python3 lies about itself: what others are given does not change."""

import os
from pathlib import Path

import pytest
from tests.index import serving

from agentd import Sandbox

_USUAL = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LIAR = f"""#!/bin/sh
export PATH={_USUAL}
python3 "$@" | sed 's/"platform_machine": "[a-z0-9_]*"/"platform_machine": "pdp11"/'
"""


def test_what_a_request_became_for_one_python_is_not_what_another_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "liar"
    folder.mkdir()
    (folder / "python3").write_text(_LIAR)
    (folder / "python3").chmod(0o755)
    with serving() as index:
        for name, value in index.configure(tmp_path).items():
            monkeypatch.setenv(name, value)
        index.add("demo", needs=[f'needed; platform_machine == "{os.uname().machine}"'])
        index.add("needed")
        with Sandbox.create(
            packages="demo",
            embedded=True,
            mounts=[f"{folder}:/liar:ro"],
            env={"PATH": f"/liar:{_USUAL}"},
        ) as lied:
            assert "needed" not in lied.enforcement["packages"].detail
        with Sandbox.create(packages="demo", embedded=True) as honest:
            honest.run(["python3", "-c", "import demo, needed"], check=True)
