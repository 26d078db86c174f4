"""Starts what is measured: each on one core, in front of an upstream, ready when the constructor returns."""

import pathlib
import shutil
import sys
import tempfile
import time

import peers
import processes

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "Tests" / "EndToEnd"))
import kit  # noqa: E402
import tenants  # noqa: E402

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
NAMES = ["direct", "nginx", "lua", "envoy", "pandora"]


class Place:
    """Where a run happens: its folder, the core of what is measured, the core of everything else."""

    def __init__(self, server_core, other_core):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="pandora-bench-"))
        self.server_core, self.other_core = server_core, other_core

    def folder(self, name):
        folder = self.directory / name
        folder.mkdir(exist_ok=True)
        return folder

    def remove(self):
        shutil.rmtree(self.directory, ignore_errors=True)


class Contender:
    """One server under measurement. `pid` is what its CPU time and memory are read from."""

    key = peers.KEY

    def settled(self):
        """Returns when what the last requests caused is done."""

    def database_seconds(self):
        """CPU time of the database behind it, if it has one."""

    def stop(self):
        self.server.stop()


class Upstream(Contender):
    """The service itself; it shares the load generator's core, in front of whom it stands makes no difference."""

    def __init__(self, place):
        self.name, self.port = "direct", processes.free_port()
        self.server = start_nginx("upstream", peers.upstream, place, place.other_core, self.port)
        self.pid = self.server.pid


class Nginx(Contender):
    def __init__(self, name, configuration, place, upstream_port):
        self.name, self.port = name, processes.free_port()
        self.server = start_nginx(name, configuration, place, place.server_core, self.port, upstream_port)
        self.pid = self.server.pid


class Envoy(Contender):
    def __init__(self, place, upstream_port):
        self.name, self.port = "envoy", processes.free_port()
        folder = place.folder("envoy")
        file = folder / "envoy.json"
        file.write_text(peers.envoy(folder, self.port, upstream_port))
        self.server = processes.Server(
            "envoy", [envoy_path(), "-c", file, "--concurrency", "1", "--log-level", "warn", "--disable-hot-restart"],
            place.server_core, folder, self.port)
        self.pid = self.server.pid


class Pandora(Contender):
    """One worker with everything on: key, limited quota, every request in PostgreSQL, which runs on the other core.

    `postgres`: settings of the server beside the usual ones. `more`: of the gateway's file.
    """

    def __init__(self, place, upstream_port, binary, pins=True, postgres=(), **more):
        self.name = "pandora"
        own, other = (processes.pinned(core) if pins else [] for core in (place.server_core, place.other_core))
        self.postgres = kit.PostgreSQL(before=other, settings=postgres)
        try:
            self.postgres.psql("CREATE DATABASE pandora;", "postgres")
            kit.Pandora(binary, self.postgres.url()).run("migrate")
            self.key = tenants.Tenants(self.postgres).environment(bench=10**12).key
            self.server = kit.Gateway("pandora", binary, {
                "workers": 1,
                "upstreams": {"service": {"targets": [f"127.0.0.1:{upstream_port}"]}},
                "routes": [{"name": "all", "service": "bench", "upstream": "service", "body_limit": "1GiB"}],
                **more,
            }, place.folder("pandora"), self.postgres.url(), before=own)
        except BaseException:
            self.postgres.remove()
            raise
        self.port, self.pid = self.server.port, self.server.pid

    def settled(self):
        """The log has reached PostgreSQL: the marks of the spools stand still."""
        last = None
        while True:
            time.sleep(0.6)
            marks = self.postgres.psql("SELECT sum(shipped_to), max(shipped_at) FROM pandora.log_spool")
            if marks == last:
                return
            last = marks

    def database_seconds(self):
        return processes.cpu_seconds(self.postgres.process.pid)

    def rows(self):
        return int(self.postgres.psql("SELECT sum(repeats) FROM pandora.request_logs")[0][0] or 0)

    def stop(self):
        try:
            self.server.stop()
        finally:
            self.postgres.remove()


def start(name, place, upstream_port, binary):
    if name == "nginx":
        return Nginx("nginx", peers.nginx_bare, place, upstream_port)
    if name == "lua":
        return Nginx("lua", peers.nginx_lua, place, upstream_port)
    if name == "envoy":
        return Envoy(place, upstream_port)
    return Pandora(place, upstream_port, binary)


def start_nginx(name, configuration, place, core, *ports):
    folder = place.folder(name)
    file = folder / "nginx.conf"
    file.write_text(configuration(folder, *ports))
    return processes.Server(
        name, [NGINX, "-e", folder / "nginx-error.log", "-c", file], core, folder, ports[0])


def envoy_path():
    try:
        import envoy
    except ImportError:
        raise SystemExit("Envoy is missing: pip install -r deploy/benchmark/requirements.txt") from None
    return pathlib.Path(envoy.__file__).parent / "_bin" / "envoy"
