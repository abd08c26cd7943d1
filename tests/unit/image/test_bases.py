from types import SimpleNamespace
from typing import Any

import pytest

from agentd.image.oci import values
from agentd.image.oci.building.bases import Bases


def test_what_lies_beneath_many_layers_is_found_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    digest_of, hashed = values.digest_of, []
    monkeypatch.setattr(values, "digest_of", lambda data: hashed.append(data) or digest_of(data))
    store: Any = SimpleNamespace(roots=SimpleNamespace(lease=asked.append))
    work: Any = None
    bases = Bases(store, work, lambda name: None, 1.0)  # type: ignore[arg-type,return-value]
    layers = [
        SimpleNamespace(diff_id=f"sha256:{n:064x}", plain=True) for n in range(values.MAX_LAYERS)
    ]
    state: Any = SimpleNamespace(layers=layers)
    with bases.beneath(state) as found:
        assert found == (None, 0)
    ids = [layer.diff_id for layer in layers]
    monkeypatch.undo()
    assert asked == [values.chain_id(ids[:count]) for count in range(len(ids), 0, -1)]
    assert len(hashed) <= len(ids)
