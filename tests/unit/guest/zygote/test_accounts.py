"""Which accounts of the host a root that can be written to has."""

from pathlib import Path

from agentd.guest.zygote import accounts


def test_the_systems_by_name_and_number_and_nobody_who_logs_in(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(
        "root:$6$x:0:0:The Admin:/root:/bin/zsh\ndb:x:117:120:,,,:/var/lib/db:/bin/bash\n"
        "ann:x:1000:1000:Ann:/home/ann:/bin/bash\nsandbox:x:500:500::/:/bin/sh\nbroken\n"
    )
    (tmp_path / "etc/group").write_text("db:x:120:ann,bob\nsudo:x:27:ann\nann:x:1000:\n")
    found = accounts.files(host=str(tmp_path))
    text = {path.removeprefix(accounts.PLACE): data.decode() for path, data in found.items()}
    passwd = text["/etc/passwd"].splitlines()
    assert [line.split(":")[0] for line in passwd] == ["root", "sandbox", "nobody", "db"]
    assert passwd[-1] == "db:x:117:120:db:/var/lib/db:/bin/bash"
    assert text["/etc/group"].splitlines()[-2:] == ["db:x:120:", "sudo:x:27:"]
    assert "ann" not in "".join(text.values())
    assert "$6$" not in "".join(text.values())
    assert [line.split(":")[1] for line in text["/etc/shadow"].splitlines()] == ["*"] * 4


def test_what_is_hidden_and_what_is_not_there_leaves_ours(tmp_path: Path) -> None:
    for found in (
        accounts.files(["/etc/passwd", "/etc/group"]),
        accounts.files(host=str(tmp_path / "none")),
    ):
        assert found[f"{accounts.PLACE}/etc/passwd"].count(b"\n") == 3
        assert found[f"{accounts.PLACE}/etc/group"].count(b"\n") == 3
