"""Which trees of /etc and /var/lib are shown: the rule, over files of our own."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agentd.guest.zygote.root import ETC_TREES
from agentd.model.configuration import HostConfiguration
from agentd.sandbox.backends import configuration
from agentd.sandbox.backends.configuration import MAX_TREES, PackagePaths

Make = Callable[..., None]
USUAL = HostConfiguration()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def file(path: str, mode: int = 0o644) -> None:
        made = tmp_path / path.lstrip("/")
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text("x")
        made.chmod(mode)

    return file


def _chosen(
    folder: Path,
    programs: tuple[str, ...] = (),
    services: tuple[str, ...] = (),
    wanted: HostConfiguration = USUAL,
) -> list[str]:
    listed = PackagePaths(frozenset(programs), frozenset(services))
    return configuration.choose(wanted, listed, str(folder), os.getuid())


def test_what_a_package_without_a_service_put_there(make: Make, tmp_path: Path) -> None:
    make("/etc/tool/sub/conf")
    make("/etc/unlisted/conf")
    make("/var/lib/tool/index")
    (tmp_path / "etc" / "empty").mkdir()
    found = _chosen(tmp_path, ("/etc/tool", "/etc/tool/sub/conf", "/var/lib/tool", "/etc/empty"))
    assert found == ["/etc/tool", "/var/lib/tool"]


def test_what_is_known_where_nobody_lists_anything(make: Make, tmp_path: Path) -> None:
    for path in ("/etc/R/Renviron", "/etc/ImageMagick-7/colors.xml", "/var/lib/texmf/web2c/x.fmt"):
        make(path)
    assert _chosen(tmp_path) == ["/etc/ImageMagick-7", "/etc/R", "/var/lib/texmf"]


@pytest.mark.parametrize("path", ["/etc/tool/secret", "/etc/tool/sub/secret"])
def test_a_file_that_not_everybody_may_read_hides_its_tree(
    make: Make, tmp_path: Path, path: str
) -> None:
    make("/etc/tool/conf")
    make(path, 0o640)
    assert _chosen(tmp_path, ("/etc/tool",)) == []


def test_a_folder_that_not_everybody_may_enter_hides_its_tree(make: Make, tmp_path: Path) -> None:
    make("/etc/tool/sub/conf")
    (tmp_path / "etc/tool/sub").chmod(0o750)
    assert _chosen(tmp_path, ("/etc/tool",)) == []


def test_what_is_another_users_hides_its_tree(make: Make, tmp_path: Path) -> None:
    make("/etc/tool/conf")
    listed = PackagePaths(frozenset({"/etc/tool"}), frozenset())
    assert configuration.choose(USUAL, listed, str(tmp_path), os.getuid() + 1) == []


def test_a_socket_hides_its_tree(make: Make, tmp_path: Path) -> None:
    make("/etc/tool/conf")
    os.mkfifo(tmp_path / "etc/tool/pipe", 0o644)
    assert _chosen(tmp_path, ("/etc/tool",)) == []


def test_of_what_a_service_has_a_part_of_the_rest_is_shown(make: Make, tmp_path: Path) -> None:
    """As of PHP, where its FastCGI server is installed, too."""
    programs = ("/etc/php", "/etc/php/8.4", "/etc/php/8.4/cli", "/etc/php/8.4/mods-available")
    services = ("/etc/php", "/etc/php/8.4", "/etc/php/8.4/fpm", "/etc/php/8.4/fpm/php.ini")
    for part in ("cli", "mods-available", "fpm"):
        make(f"/etc/php/8.4/{part}/php.ini")
    kept = ["/etc/php/8.4/cli", "/etc/php/8.4/mods-available"]
    assert _chosen(tmp_path, programs, services) == kept
    assert _chosen(tmp_path, programs) == ["/etc/php"]


@pytest.mark.parametrize("name", ["ssh", "apt", "NetworkManager", "sudoers.d", "ssl/private"])
def test_what_tells_of_the_host_never_is(make: Make, tmp_path: Path, name: str) -> None:
    make(f"/etc/{name}/conf")
    assert _chosen(tmp_path, (f"/etc/{name}", os.path.dirname(f"/etc/{name}"))) == []


def test_what_is_hidden_takes_the_rest_along_only_as_far_as_it_must(
    make: Make, tmp_path: Path
) -> None:
    make("/etc/tool/one/conf")
    make("/etc/tool/two/conf")
    programs = ("/etc/tool", "/etc/tool/one", "/etc/tool/two")
    assert _chosen(tmp_path, programs) == ["/etc/tool"]
    hidden = HostConfiguration(hide=("/etc/tool/one",))
    assert _chosen(tmp_path, programs, wanted=hidden) == ["/etc/tool/two"]
    assert _chosen(tmp_path, programs, wanted=HostConfiguration(hide=("/etc/tool",))) == []


def test_what_dpkg_lists(tmp_path: Path) -> None:
    (tmp_path / "info").mkdir()
    (tmp_path / "info" / "tool.list").write_text("/.\n/etc\n/etc/tool\n/usr/bin/tool\n")
    (tmp_path / "info" / "daemon.list").write_text(
        "/.\n/etc\n/etc/daemon\n/usr/lib/systemd/system\n/usr/lib/systemd/system/daemon.service\n"
    )
    (tmp_path / "info" / "tool.md5sums").write_text("/etc/other\n")
    listed = configuration.listed_by_dpkg(str(tmp_path))
    assert listed == PackagePaths(frozenset({"/etc/tool"}), frozenset({"/etc/daemon"}))
    assert configuration.listed_by_dpkg(str(tmp_path / "none")) == PackagePaths(
        frozenset(), frozenset()
    )


def test_the_least_and_what_is_shown_besides() -> None:
    least = configuration.trees(HostConfiguration("minimal", show=("/etc/ours",)))
    assert set(least) == {*ETC_TREES, "/etc/ours"}
    assert "/etc/perl" not in configuration.trees(HostConfiguration(hide=("/etc/perl",)))
    assert "/etc/ssl/certs" not in configuration.trees(
        HostConfiguration(hide=("/etc/ssl/certs/a",))
    )


def test_it_is_looked_for_once_and_again_where_something_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looked = []

    def choose(*_: object) -> list[str]:
        looked.append(1)
        return [f"/etc/made{number}" for number in range(200)]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(configuration, "choose", choose)
    first = configuration.trees(USUAL)
    assert configuration.trees(USUAL) == first
    assert len(first) == MAX_TREES
    assert len(looked) == 1
    configuration.trees(HostConfiguration(hide=("/etc/other",)))
    assert len(looked) == 2


def test_a_cache_that_cannot_be_read_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = configuration.trees(USUAL)
    (kept,) = (tmp_path / "agentd").iterdir()
    kept.write_text("{")
    assert configuration.trees(USUAL) == before
    assert kept.read_text() != "{"
