"""The wall suite, what every wall keeps: ``pytest --pyargs agentd.testing.walls --backend NAME``."""
