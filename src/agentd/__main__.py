import sys

from agentd.client.cli.main import main

sys.exit(main())
