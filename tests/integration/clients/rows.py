"""Programs as their users have them: how each reads something, and how it would write.

Scripts get a base, as "host/v1". One exits with 0 where the program has what it asked for. With
API_TOKEN in the environment it says who it is, as the program's own manual tells.
"""

from dataclasses import dataclass

PROGRAMS = "/clients"  # where the tests' own programs are mounted
_BEARER = '${API_TOKEN:+"Authorization: Bearer $API_TOKEN"}'
_AS_USER = "https://${API_TOKEN:+user:$API_TOKEN@}$1"


@dataclass(frozen=True, eq=False)
class Program:
    """``writes`` is empty where it never does. ``packages`` are PyPI's, which it comes from;
    ``modules`` npm's, which a test has installed. ``in_gate``: cheap, and mostly installed.
    ``writable``: it is root's, whose root can be written to, which the wall linux alone has beside
    the host's programs."""

    name: str
    reads: str
    writes: str = ""
    needs: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    in_gate: bool = False
    writable: bool = False


def _asking(command: str) -> tuple[str, str]:
    """Of a program that is given METHOD URL and prints a status."""
    reads = f'test "$({command} GET "https://$1/echo")" = 200'
    return reads, f'test "$({command} POST "https://$1/echo")" = 200'


def _python(library: str) -> Program:
    command = f"python3 {PROGRAMS}/client.py {library}"
    packages = () if library == "urllib" else (library,)
    return Program(library, *_asking(command), ("python3",), packages, in_gate=not packages)


def _node(library: str, *modules: str) -> Program:
    command = f"node {PROGRAMS}/client.cjs {library}"
    return Program(library, *_asking(command), ("node",), (), modules, in_gate=not modules)


def _java(library: str) -> Program:
    command = f"java -cp /made Client {library}"
    return Program(library, *_asking(command), ("javac",))


_CURL = f'curl -sS -m 60 -o /dev/null -w "%{{http_code}}" ${{API_TOKEN:+-H}} {_BEARER} -X'
_WGET = f'wget -q -O/dev/null --tries=1 ${{API_TOKEN:+--header}} {_BEARER} "https://$1/echo"'
_PIP = (
    "pip download -q --disable-pip-version-check --no-cache-dir --no-deps --retries 0"
    f' -d /tmp/pip.$$ --index-url "{_AS_USER}/simple" sample'
)
_UV = (
    "UV_HTTP_RETRIES=0 uv pip install -q --no-cache --no-config --python python3"
    f' --target /tmp/uv.$$ --index-url "{_AS_USER}/simple" sample'
)
# Its cache, where its logs grow too, is not in what it packs.
_NPM = (
    'cd "$(mktemp -d)"; mkdir it; cd it;'
    ' echo \'{"name": "sample", "version": "2.0.0"}\' >package.json;'
    ' npm --registry "https://$1/npm/" --fetch-retries=0 --cache .. --loglevel error'
)
_GIT = 'git ${API_TOKEN:+-c} ${API_TOKEN:+"http.extraHeader=Authorization: Bearer $API_TOKEN"}'
_CLONE = f'{_GIT} clone -q "https://$1/git/sample.git" /tmp/git.$$'
_PUSH = f"""
git init -q -b other /tmp/push.$$ && cd /tmp/push.$$
git -c user.name=a -c user.email=a@example.com commit -q --allow-empty -m other
{_GIT} push -q "https://$1/git/sample.git" other
"""
_APT = f"""
mkdir -p /etc/apt/sources.list.d
echo "deb [trusted=yes] {_AS_USER}/debian ./" >/etc/apt/sources.list
apt-get -q update -o Acquire::Retries=0 -o APT::Update::Error-Mode=any
apt-get -q install -y agentd-sample
dpkg -s agentd-sample | grep -q '^Status: install ok'
apt-get -q purge -y agentd-sample
"""

#: apt in a folder of its own, for roots that cannot be written to.
APT_IN_A_FOLDER = """
cd "$(mktemp -d)"; mkdir -p etc/apt/preferences.d state/lists/partial cache; touch status
apt() {
    apt-get -q -o Dir="$PWD" -o Dir::State=state -o Dir::State::status="$PWD/status" \\
        -o Dir::Cache=cache -o APT::Update::Error-Mode=any -o Acquire::Retries=0 \\
        -o APT::Sandbox::User=root "$@"
}
"""
_DOWNLOAD = f"""{APT_IN_A_FOLDER}
echo "deb [trusted=yes] {_AS_USER}/debian ./" >etc/apt/sources.list
apt update; apt download agentd-sample; ls agentd-sample*.deb
"""

ROWS = (
    Program("curl", *_asking(_CURL), ("curl",), in_gate=True),
    Program("wget", _WGET, f"{_WGET} --post-data=x", ("wget",), in_gate=True),
    _python("urllib"),
    _python("requests"),
    _python("httpx"),
    _python("aiohttp"),
    Program("pip", _PIP, needs=("pip",), in_gate=True),
    Program("uv", _UV, packages=("uv",)),
    _node("fetch"),
    _node("https"),
    _node("undici", "undici@6.22.0"),
    _node("axios", "axios@1.13.2"),
    Program(
        "npm",
        f'{_NPM} ${{API_TOKEN:+"--//$1/npm/:_authToken=$API_TOKEN"}} pack sample',
        f'{_NPM} "--//$1/npm/:_authToken=${{API_TOKEN:-none}}" publish',
        ("npm",),
        in_gate=True,
    ),
    Program("git", _CLONE, _PUSH, ("git",), in_gate=True),
    Program("apt", _APT, needs=("apt-get", "dpkg-deb"), writable=True),
    Program("apt-download", _DOWNLOAD, needs=("apt-get", "dpkg-deb")),
    _java("HttpClient"),
    _java("HttpURLConnection"),
    Program("go", *_asking("/made/go-client"), ("go",)),
)
