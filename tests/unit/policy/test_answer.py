import pytest

from agentd.policy.answer import decision, passed, texts


def _answer(members):
    return '{"expressions":[{' + members + "}]}"


def test_a_decision_is_read():
    found = decision(_answer('"allow":true, "reasons":["a"]'), "sha256:x")
    assert (found.allow, found.reasons, found.bundle) == (True, ("a",), "sha256:x")
    assert not decision(_answer('"allow":false, "obligations":{}'), "").allow


@pytest.mark.parametrize(
    "text",
    [
        "undefined",
        "",
        "<error>",
        "{}",
        '{"expressions":[]}',
        '{"expressions":[{"allow":true},{"allow":true}]}',
        '{"expressions":[{"allow":true}],"bindings":{}}',
        _answer('"allow":true,"allow":true'),
        _answer('"allow":false,"reasons":[],"allow":true'),
        _answer('"allow":false,"obligations":{"no_network":true},"obligations":{}'),
        _answer('"allow":true,"obligations":{"level":"microvm","level":"none"}'),
        _answer('"reasons":[],"allow":true'),
        _answer('"allow":true,"more":1'),
        _answer('"allow":true,"reasons":[' + ",".join(['"a"'] * 65) + "]"),
        _answer('"allow":true,"obligations":{"limits":{"memory":0}}'),
        _answer('"allow":true,"reasons":["' + "a" * (256 << 10) + '"]'),
        "[" * 100_000,
    ],
)
def test_all_else_is_none(text):
    with pytest.raises(ValueError):
        decision(text, "")


def test_a_set_of_texts():
    assert texts('{"expressions":[["a","b"]]}') == ("a", "b")
    assert texts("undefined") == ()
    with pytest.raises(ValueError):
        texts('{"expressions":[[1]]}')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"expressions":[true]}', True),
        ('{"expressions":[1]}', False),
        ('{"expressions":[false]}', False),
        ('{"expressions":["true"]}', False),
        ('{"expressions":[true,true]}', False),
        ("undefined", False),
    ],
)
def test_true_alone_is_passed(text, expected):
    assert passed(text) is expected
