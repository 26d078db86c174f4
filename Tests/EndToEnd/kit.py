"""What the end-to-end tests and the benchmark stand on: a private PostgreSQL, real upstreams, and gateways started as users do."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]

PATIENCE = 120
"""Seconds that a test waits for what only a wrong program never does: they say nothing about how long a loaded machine may take."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(check, seconds=PATIENCE, what="condition"):
    """Polls until check() returns something true; an AssertionError in it counts as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        last = None
        try:
            result = check()
            if result:
                return result
        except (AssertionError, OSError, urllib.error.URLError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what} ({last})")
        time.sleep(0.05)


def answers(port, path="/"):
    """True when something answers HTTP on the port, whatever the status."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        pass
    return True


class Process:
    """A child process logged to a file; always stopped, and killed when it does not."""

    def __init__(self, name, command, directory, environment=None, before=()):
        self.name, self.log_path = name, pathlib.Path(directory, f"{name}.log")
        self.command = [*before, *(str(part) for part in command)]
        self.environment = {**os.environ, **(environment or {})}
        self.start()

    def start(self):
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self.environment)

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        return self.log_path.read_text(errors="replace")

    def running(self):
        return self.process.poll() is None

    def said(self, message, since=0):
        """The JSON log lines with this message, from an offset of the log on."""
        found = []
        for line in self.log_path.read_bytes()[since:].splitlines():
            if line.startswith(b"{") and message.encode() in line:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # Half a line: its end is not written yet.
                if entry.get("message") == message:
                    found.append(entry)
        return found

    def kill(self):
        self.process.kill()
        return self.process.wait()

    def stop(self, seconds=PATIENCE, with_signal=signal.SIGTERM):
        if self.running():
            self.process.send_signal(with_signal)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"{self.name} did not stop within {seconds} s:\n{self.log()[-4000:]}") from None
        return self.process.returncode


class PostgreSQL:
    """A cluster of its own on a unix socket, run by an unprivileged user when the tests run as root.

    `follows`: another one, whose standby it is. `settings`: further ones of the server, `name=value`.
    """

    def __init__(self, before=(), follows=None, settings=()):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="pandora-pg-", dir="/tmp"))
        self.before, self.settings, self.process = before, settings, None
        programs = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        self.programs = programs[-1]
        self.as_user = []
        if os.geteuid() == 0:
            self.as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(self.directory, "postgres", "postgres")
        make = [self.programs / "initdb", "-D", self.directory / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8",
                "--locale=C", "-N"]
        if follows:
            make = [self.programs / "pg_basebackup", "-D", self.directory / "data", "-R", "-c", "fast",
                    "-d", f"host={follows.directory} user=postgres application_name=standby"]
        subprocess.run([*self.as_user, *make], check=True, stdout=subprocess.DEVNULL, cwd=self.directory)
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [*self.before, *self.as_user, self.programs / "postgres", "-D", self.directory / "data", "-k", self.directory,
             "-c", "listen_addresses=", "-c", "max_connections=200", "-c", "shared_buffers=128MB",
             "-c", "synchronous_commit=on", "-c", "max_wal_size=4GB", *(part for one in self.settings for part in ("-c", one))],
            cwd=self.directory, stdin=subprocess.DEVNULL,
            stdout=(self.directory / "log").open("ab"), stderr=subprocess.STDOUT)
        eventually(lambda: self.psql("select 1", database="postgres"), what="PostgreSQL answers")

    def url(self, database="pandora"):
        return f"postgres://postgres@/{database}?host={self.directory}"

    def psql(self, sql, database="pandora"):
        """Rows as lists of strings; \\gset works. Fails like the OSError it is when the server is away."""
        done = subprocess.run(["psql", "-XqAt", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-h", self.directory, "-U", "postgres",
                               "-d", database, "-f", "-"], input=sql, capture_output=True, text=True, cwd="/")
        if done.returncode != 0:
            raise OSError(done.stderr.strip())
        return [line.split("\t") for line in done.stdout.splitlines()]

    def stop(self, how=signal.SIGINT):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(PATIENCE)
            # Without their postmaster they end by themselves; until then no other one may have the cluster's memory.
            eventually(lambda: not self.is_used(), what="its processes are gone")

    def is_used(self):
        """Whether there is a process of the cluster: each of them works in its folder."""
        def folder(process):
            with contextlib.suppress(OSError):  # It has ended.
                return (process / "cwd").readlink()

        return any(folder(process) == self.directory / "data" for process in pathlib.Path("/proc").glob("[0-9]*"))

    @contextlib.contextmanager
    def stalled(self):
        """Inside the block its connections stand, new ones are taken by the kernel, and nothing is answered."""
        postmaster, stopped = self.process.pid, []

        def tell(process, what):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, what)

        try:
            tell(postmaster, signal.SIGSTOP)
            with contextlib.suppress(OSError):
                stopped = [int(pid) for pid in pathlib.Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()]
            for process in stopped:
                tell(process, signal.SIGSTOP)
            yield
        finally:
            for process in (*stopped, postmaster):
                tell(process, signal.SIGCONT)

    def remove(self):
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)


class Nginx(Process):
    """Debian's nginx serving a folder, as a service nobody here wrote."""

    def __init__(self, directory, files):
        self.port = free_port()
        directory = pathlib.Path(directory)
        configuration = directory / "nginx.conf"
        temporary = "\n".join(f"  {kind}_temp_path {directory}/{kind};"
                              for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        user = "user root;" if os.geteuid() == 0 else ""
        configuration.write_text(f"""
{user} daemon off; master_process off; error_log {directory}/nginx-error.log; pid {directory}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
{temporary}
  include /etc/nginx/mime.types; access_log off; client_max_body_size 0;
  server {{
    listen 127.0.0.1:{self.port}; root {files};
    location /upload/ {{ dav_methods PUT; create_full_put_path on; }}
  }}
}}
""")
        super().__init__("nginx", [shutil.which("nginx") or "/usr/sbin/nginx", "-e", directory / "nginx-error.log",
                                   "-c", configuration], directory)
        eventually(lambda: answers(self.port), what="nginx answers")


class Httpbin(Process):
    """httpbin from PyPI under gunicorn."""

    def __init__(self, directory):
        self.port = free_port()
        super().__init__("httpbin", [sys.executable, "-m", "gunicorn", "--no-control-socket", "-b", f"127.0.0.1:{self.port}",
                                     "-k", "gthread", "--threads", "16", "--keep-alive", "30", "httpbin:app"], directory)
        eventually(lambda: answers(self.port, "/get"), what="httpbin answers")


class Pandora:
    """The command and the gateways it starts, all on one database."""

    def __init__(self, binary, database_url):
        self.binary, self.database_url = str(binary), database_url

    def run(self, *arguments, check=True):
        done = subprocess.run([self.binary, *map(str, arguments)], capture_output=True, text=True,
                              env={**os.environ, "PANDORA_DATABASE_URL": self.database_url})
        if check and done.returncode != 0:
            raise AssertionError(f"pandora {' '.join(map(str, arguments))} exited {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def json(self, *arguments):
        return json.loads(self.run(*arguments, "--json").stdout)


class Gateway(Process):
    """`pandora serve` with a configuration of its own; constructed means ready. JSON is YAML."""

    def __init__(self, name, binary, configuration, directory, database_url, before=()):
        file = pathlib.Path(directory, f"{name}.yaml")
        file.write_text(json.dumps({
            "node": name, "listen": ["127.0.0.1:0"], "database": {"url": "${PANDORA_DATABASE_URL}"},
            "spool": {"directory": str(pathlib.Path(directory, f"{name}.spool"))}, **configuration}, indent=1))
        self.restarting = threading.Lock()
        """Held by a thread that ends and starts it where several do: two processes at once would share a spool."""
        super().__init__(name, [binary, "serve", file], directory, {"PANDORA_DATABASE_URL": database_url}, before)

    def start(self):
        since = self.log_path.stat().st_size if self.log_path.exists() else 0
        super().start()

        def ready():
            said = self.said("ready", since)
            if not said and not self.running():
                raise RuntimeError(f"{self.name} exited {self.process.returncode}:\n{self.log()[-4000:]}")
            return said

        self.addresses = eventually(ready, what=f"{self.name} is ready")[0]["listen"].split(",")

    @property
    def port(self):
        return int(self.addresses[0].rpartition(":")[2])
