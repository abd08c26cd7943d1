"""make test-combinations asks all of what every run asks a part of: whatever says so looks here."""

import os

ALL = os.environ.get("AGENTD_TEST_COMBINATIONS") == "1"
