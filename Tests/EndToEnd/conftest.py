"""What the tests share: one PostgreSQL, the real services, the scripted upstream, and a gateway in front of them all."""

import os
import pathlib
import subprocess
import types

import pytest

import kit
import tenants as tenancy
import upstreams


@pytest.fixture(scope="session")
def binary():
    """The command under test; built by deploy/test, or named by PANDORA_BINARY."""
    named = os.environ.get("PANDORA_BINARY")
    if not named:
        folder = subprocess.run(["swift", "build", "--show-bin-path"], cwd=kit.ROOT, check=True, capture_output=True, text=True)
        named = pathlib.Path(folder.stdout.strip(), "pandora")
    assert pathlib.Path(named).exists(), f"{named} is missing: run swift build"
    return named


@pytest.fixture(scope="session")
def postgres(binary):
    """A cluster with the schema in database `pandora`."""
    server = kit.PostgreSQL()
    try:
        server.psql("CREATE DATABASE pandora", "postgres")
        kit.Pandora(binary, server.url()).run("migrate")
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def tenants(postgres):
    return tenancy.Tenants(postgres)


@pytest.fixture(scope="session")
def log(postgres):
    return tenancy.RequestLog(postgres)


@pytest.fixture(scope="session")
def services(tmp_path_factory):
    """What stands behind the gateway."""
    directory = tmp_path_factory.mktemp("services")
    files = directory / "files"
    (files / "upload").mkdir(parents=True)
    (files / "small.txt").write_bytes(b"a small file\n" * 10)
    (files / "page.html").write_bytes(b"<!doctype html><title>page</title>" + b"<p>paragraph</p>" * 5000)
    piece = os.urandom(1 << 20)
    with (files / "large.bin").open("wb") as large:
        for number in range(200):
            large.write(number.to_bytes(4, "big") + piece[4:])
    started = types.SimpleNamespace(directory=directory, files=files, raw=upstreams.ScriptedUpstream(),
                                    refusing=upstreams.RefusingPort(), processes=[])
    try:
        started.nginx = kit.Nginx(directory, files)
        started.processes.append(started.nginx)
        started.httpbin = kit.Httpbin(directory)
        started.processes.append(started.httpbin)
        yield started
    finally:
        for process in started.processes:
            process.stop()
        started.raw.close()


@pytest.fixture(scope="session")
def raw(services):
    return services.raw


def configuration(services, **boot):
    """A route per host; most of them lead to the scripted upstream and differ in one setting.

    Answers may be late by themselves, for as long as a test holds them back or this machine stands still.
    """
    def local(port):
        return f"127.0.0.1:{port}"

    routes = {
        "nginx": {"upstream": "nginx", "service": "files", "body_limit": "1GiB"},
        "httpbin": {"upstream": "httpbin", "service": "httpbin"},
        "raw": {},
        "refused": {"upstream": "refused"},
        "impatient": {"timeouts": {"first_byte": "300ms"}},
        "stalling": {"timeouts": {"first_byte": "2m", "idle": "300ms"}},
        "small": {"body_limit": "1000B"},
        "query": {"key_query": "api_key", "log": {"query": True}},
        "old": {"service": "old", "deprecated": "refuse"},
        "always": {"charge": "always"},
        "never": {"charge": "never"},
        "dear": {"units": 5},
        "reported": {"units": {"max": 5, "header": "X-Units"}},
        "reported-allowed": {"units": {"max": 5, "header": "X-Units"}, "quota_unavailable": "allow"},
        "reported-always": {"units": {"max": 5, "header": "X-Units"}, "charge": "always"},
        "preserved": {"upstream": "preserved"},
        "limited": {"service": "limited"},
    }
    return {
        "workers": 2, "log": {"batch_time": "20ms"}, "keys": {"negative_time": "1h"},
        # Whoever holds a unit and stands still may give it back when it runs again.
        "quota": {"recall_wait": "1s"}, **boot,
        "upstreams": {
            "nginx": {"targets": [local(services.nginx.port)]},
            "httpbin": {"targets": [local(services.httpbin.port)]},
            "raw": {"targets": [local(services.raw.port)]},
            "preserved": {"targets": [local(services.raw.port)], "host_header": "preserve"},
            "refused": {"targets": [local(services.refusing.port)]},
        },
        "routes": [
            *({"name": name, "match": {"host": f"{name}.test"}, "service": "orders", "upstream": "raw",
                "timeouts": {"first_byte": "2m"}, **route}
              for name, route in routes.items()),
            {"name": "stripped", "match": {"host": "edited.test", "prefix": "/strip"}, "service": "orders", "upstream": "raw",
             "strip_prefix": "/strip", "request_headers": {"set": {"X-Set": "by the route"}, "remove": ["X-Removed"]}},
            {"name": "rewritten", "match": {"host": "edited.test", "pattern": "/orders/{id}/lines"}, "service": "orders",
             "upstream": "raw", "rewrite": "/lines/{id}/echo"},
        ],
    }


@pytest.fixture(scope="session")
def make_gateway(binary, postgres, services, tmp_path_factory):
    """Starts gateways on the shared database; all of them are stopped at the end."""
    started = []

    def make(name, database_url=None, **boot):
        started.append(kit.Gateway(name, binary, configuration(services, **boot), tmp_path_factory.mktemp(name),
                                   database_url or postgres.url()))
        return started[-1]

    yield make
    for one in started:
        one.stop()


@pytest.fixture(scope="session")
def gateway(make_gateway):
    """The gateway of most tests: two workers, default limits."""
    return make_gateway("gateway")


@pytest.fixture(scope="session")
def environment(tenants):
    """May use every service without limit."""
    return tenants.environment(files=None, httpbin=None, orders=None)


@pytest.fixture(scope="session")
def key(environment):
    return environment.key
