"""How long the suites wait for what takes as long as the machine is slow."""

import os

#: How many times longer than on hardware: an emulated machine sets it.
SLOWER = float(os.environ.get("AGENTD_TESTS_SLOWER", "1"))
