"""What a sandbox has in place of a secret: of the same length, and of its provider's shape."""

import secrets
import string

from agentd.model.secret import MIN_REPLACED, SecretValue

# Programs look at these before they ask anybody. The longer of two comes first.
_SHAPES = (
    *("sk-ant-api03-", "sk-ant-", "sk-proj-", "sk-or-v1-", "sk-svcacct-", "sk-"),
    *("github_pat_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "glpat-", "xoxb-", "xoxp-", "xapp-"),
    *("hf_", "gsk_", "xai-", "npm_", "pypi-", "AIza", "sk_live_", "sk_test_", "rk_live_", "r8_"),
    *("dop_v1_", "pplx-", "nvapi-", "tgp_v1_", "SG.", "agd_"),
)
_LETTERS = string.ascii_letters + string.digits
# 71 bits: nothing else in a request has it by chance, and nobody guesses another sandbox's.
_RANDOM = 12


def placeholder(value: SecretValue) -> str:
    """Return letters and digits behind the provider's prefix: as long as the value, or as the
    least that can be replaced where that is longer."""
    text = value.text
    length = max(len(text), MIN_REPLACED)
    while True:
        shape = next((s for s in _SHAPES if text.startswith(s) and length >= len(s) + _RANDOM), "")
        made = shape + "".join(secrets.choice(_LETTERS) for _ in range(length - len(shape)))
        if made != text:
            return made
