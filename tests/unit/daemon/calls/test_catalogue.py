from types import SimpleNamespace

import msgspec

from agentd.capability.registry import Registry
from agentd.daemon.calls import catalogue


def test_what_works_comes_first_and_what_does_not_says_why():
    broken = SimpleNamespace(name="acme.broken.v1", value="acme_nowhere:CAPABILITY")
    views = catalogue.views(Registry(points=lambda: [broken]))
    *good, bad = views
    assert "shell.exec.v1" in [view.name for view in good]
    assert not any(view.blocker for view in good)
    assert bad.name == "acme.broken.v1" and "acme_nowhere" in bad.blocker
    assert (bad.parameters, bad.needs, bad.examples) == ({}, {}, ())


def test_a_view_is_all_that_a_caller_needs():
    about = Registry().get("fs.write.v1").about
    view = catalogue.view(about)
    assert (view.name, view.summary) == (about.name, about.summary)
    assert view.needs == {"level": "process", "network": False, "writes": True, "sandbox": True}
    assert view.parameters == about.schema
    assert [e["parameters"] for e in view.examples] == [e.parameters for e in about.examples]
    assert msgspec.json.decode(msgspec.json.encode(view))["name"] == "fs.write.v1"
