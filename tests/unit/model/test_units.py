import pytest

from agentd.model.units import counted


@pytest.mark.parametrize(
    ("count", "words", "told"),
    [
        (0, ("file",), "0 files"),
        (1, ("file",), "1 file"),
        (2, ("file",), "2 files"),
        (1, ("command runs", "commands run"), "1 command runs"),
        (3, ("command runs", "commands run"), "3 commands run"),
    ],
)
def test_a_count_has_a_noun_that_fits(count, words, told):
    assert counted(count, *words) == told
