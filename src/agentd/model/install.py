"""How agentd is installed: its distribution's name, and the commands that add what is missing.

The distribution called ``agentd`` on PyPI is another project's, with the same import name.
"""

import sys

DISTRIBUTION = "agentd-sandbox"

# What each extra of pyproject.toml brings. Named one by one, since no index has our distribution.
EXTRAS = {
    "otel": ("opentelemetry-sdk>=1.30", "opentelemetry-exporter-otlp-proto-http>=1.30"),
    "testing": ("pytest>=9", "pytest-timeout>=2.4"),
}


def command(*packages: str) -> str:
    """Return the shell command that installs ``packages`` for the Python that runs."""
    import shlex  # late: clients need the name alone, and start-up counts

    return f"{shlex.quote(sys.executable)} -m pip install {shlex.join(packages)}"


def replacing(distribution: str) -> str:
    """Return the commands that remove ``distribution`` and put back the files that it shared."""
    import shlex

    pip = f"{shlex.quote(sys.executable)} -m pip"
    return (
        f"{pip} uninstall -y {shlex.quote(distribution)}\n"
        f"in the checkout of {DISTRIBUTION}: {pip} install --force-reinstall --no-deps ."
    )
