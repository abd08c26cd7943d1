"""The wall suite, what all keep: ``pytest --pyargs agentd.testing.walls --backend NAME``."""
