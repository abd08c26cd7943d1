"""Who sandboxes are outside, when agentd runs as root."""

# Must own nothing: above the ranges of system users, login users and subordinate ids.
SANDBOX_UID = 2_000_000_000
