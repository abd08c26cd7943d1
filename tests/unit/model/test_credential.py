import pytest

from agentd.model.credential import Credential


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
        (None, None),
    ],
)
def test_a_bearer_token(header, token):
    assert Credential(authorization=header).bearer == token


def test_what_is_printed_holds_no_secret():
    credential = Credential(
        peer_uid=1, authorization="Bearer hush", api_key="agd_hush", certificate=b"hush"
    )
    assert "hush" not in repr(credential) and "hush" not in f"{credential}"
    assert "peer_uid=1" in repr(credential) and "api_key" in repr(credential)
