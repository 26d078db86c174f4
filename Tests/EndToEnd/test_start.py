"""PostgreSQL goes away while a gateway starts: it says so, asks again, and serves; what waiting does not mend ends it."""

import concurrent.futures
import json
import pathlib
import socket
import struct
import subprocess
import threading

import pytest

import kit
from conftest import configuration
from wire import Wire, request

# What tells the statements apart by which a gateway finds out whether it may start, in their order.
QUESTIONS = {
    "schema_find": b"to_regclass('pandora.schema_migrations')",
    "schema_read": b"FROM pandora.schema_migrations",
    "database_settings": b"pg_stat_replication",
    "cluster_settings": b"FROM pandora.cluster_settings",
}


def said(severity, code, message):
    """An ErrorResponse."""
    fields = b"".join(kind + value + b"\0" for kind, value in ((b"S", severity), (b"V", severity), (b"C", code), (b"M", message)))
    return b"E" + struct.pack("!i", len(fields) + 5) + fields + b"\0"


# What the gateway gets instead of an answer, and whether the connection ends with it.
WAYS = {
    "cut": (b"", True),
    "half a message": (b"T\0\0", True),
    "shut down": (said(b"FATAL", b"57P01", b"terminating connection due to administrator command"), True),
    "no memory": (said(b"ERROR", b"53200", b"out of memory") + b"Z\0\0\0\5I", False),
    "cancelled": (said(b"ERROR", b"57014", b"canceling statement due to user request") + b"Z\0\0\0\5I", False),
}


class Between:
    """Stands between a gateway and PostgreSQL, and so many times lets something else happen than an answer to a question."""

    def __init__(self, postgres, question, way, times):
        self.question, self.left = question, times
        self.instead, self.ends = way
        self.target = str(postgres.directory / ".s.PGSQL.5432")
        self.lock, self.listener = threading.Lock(), socket.create_server(("127.0.0.1", 0))
        self.url = f"postgres://postgres@127.0.0.1:{self.listener.getsockname()[1]}/pandora"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self.listener.close()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.target)
            for pump, *ends in ((self._questions, client, server), (self._answers, server, client)):
                threading.Thread(target=pump, args=ends, daemon=True).start()

    def _strikes(self, data):
        with self.lock:
            strikes = self.question in data and self.left > 0
            self.left -= strikes
            return strikes

    def _questions(self, client, server):
        try:
            while data := client.recv(1 << 16):
                if not self._strikes(data):
                    server.sendall(data)
                    continue
                client.sendall(self.instead)
                if self.ends:
                    break
        except OSError:
            pass
        for end in (client, server):
            self._end(end)

    def _answers(self, server, client):
        try:
            while data := server.recv(1 << 16):
                client.sendall(data)
        except OSError:
            pass
        self._end(client)

    @staticmethod
    def _end(end):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


@pytest.mark.parametrize("way", WAYS)
def test_every_question_of_the_start_is_asked_again(binary, postgres, services, key, tmp_path, way):
    def start(question):
        between, gateway = Between(postgres, QUESTIONS[question], WAYS[way], 2), None
        try:
            gateway = kit.Gateway(question, binary, configuration(services, workers=1), tmp_path, between.url)
            assert between.left == 0
            waited = gateway.said("waiting for the database")
            assert len(waited) == 2 and all(f"{question}: " in json.dumps(one) for one in waited), waited
            with Wire(gateway.port) as wire:
                assert wire.send(request("GET", "/echo", key=key)).read().status == 200
            assert gateway.stop() == 0
        finally:
            between.close()
            if gateway:
                gateway.stop()

    with concurrent.futures.ThreadPoolExecutor(len(QUESTIONS)) as threads:  # Each has its own pauses.
        for started in [threads.submit(start, question) for question in QUESTIONS]:
            started.result()


def test_a_question_that_may_not_be_asked_ends_the_start(binary, postgres, services, tmp_path):
    postgres.psql("DROP ROLE IF EXISTS stranger; CREATE ROLE stranger LOGIN")
    pathlib.Path(tmp_path, "stranger.yaml").write_text(json.dumps({
        "listen": ["127.0.0.1:0"], "spool": {"directory": str(tmp_path / "spool")},
        "database": {"url": postgres.url().replace("postgres@", "stranger@")}, **configuration(services)}))
    done = subprocess.run([binary, "serve", tmp_path / "stranger.yaml"], capture_output=True, text=True, timeout=kit.PATIENCE)
    assert done.returncode == 1 and "permission denied for schema pandora" in done.stderr, done
