"""Tenants made, and the log read, by SQL: in one round trip, with secrets made as the gateway makes them."""

import dataclasses
import hashlib
import itertools
import json
import secrets
import zlib

import kit

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def new_secret():
    """pk_, 32 random characters, an underscore, the CRC-32 of all before it in base 62."""
    text = "pk_" + "".join(secrets.choice(DIGITS) for _ in range(32))
    checksum, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        checksum, digit = divmod(checksum, 62)
        digits = DIGITS[digit] + digits
    return f"{text}_{digits}"


@dataclasses.dataclass
class Environment:
    """An environment with one key, and what it may use: service name to its id."""

    client: str
    project_id: int
    id: int
    key: str
    key_id: str
    services: dict


class Tenants:
    counter = itertools.count(1)

    def __init__(self, postgres, database="pandora"):
        self.postgres, self.database = postgres, database

    def sql(self, text):
        return self.postgres.psql(text, self.database)

    def environment(self, **services):
        """A client, project and environment that may use the services: units a month, None is unlimited."""
        number = next(self.counter)
        client, secret = f"client-{number}", new_secret()
        script = [
            "SET search_path = pandora;",
            f"INSERT INTO client (name) VALUES ('{client}') RETURNING id AS client \\gset",
            "INSERT INTO project (client_id, name) VALUES (:client, 'shop') RETURNING id AS project \\gset",
            "INSERT INTO environment (project_id, name) VALUES (:project, 'prod') RETURNING id AS environment \\gset",
        ]
        for name, limit in services.items():
            units = "NULL" if limit is None else str(limit)
            script += [
                f"INSERT INTO service AS s (name) VALUES ('{name}') ON CONFLICT (name, version)"
                " DO UPDATE SET name = s.name RETURNING id AS service \\gset",
                "INSERT INTO project_service (project_id, service_id, max_request, reset_frequency)"
                f" VALUES (:project, :service, {units}, 'monthly');",
                "INSERT INTO environment_service (environment_id, service_id, max_request)"
                f" VALUES (:environment, :service, {units}) RETURNING service_id;",
            ]
        script.append(f"WITH k AS ({self.insert_key(secret)}) SELECT :project, :environment, id FROM k;")
        *assigned, last = self.sql("\n".join(script))
        return Environment(client, int(last[0]), int(last[1]), secret, last[2],
                           {name: int(row[0]) for name, row in zip(services, assigned)})

    @staticmethod
    def insert_key(secret, environment=":environment"):
        digest = hashlib.sha256(secret.encode()).hexdigest()
        return (f"INSERT INTO pandora.api_key (environment_id, key, prefix) VALUES ({environment}, '\\x{digest}',"
                f" '{secret[3:11]}') RETURNING id")

    def add_key(self, environment):
        """A further key of the environment: its secret."""
        secret = new_secret()
        self.sql(self.insert_key(secret, environment.id) + ";")
        return secret


class RequestLog:
    """The table that says what happened."""

    def __init__(self, postgres, database="pandora"):
        self.postgres, self.database = postgres, database

    def rows(self, condition):
        found = self.postgres.psql(
            f"SELECT row_to_json(r) FROM pandora.request_logs r WHERE {condition} ORDER BY id", self.database)
        return [json.loads(row[0]) for row in found]

    def row(self, request_id):
        """The row of a request, which arrives a moment after its answer."""
        assert request_id, "the answer carried no request id"
        [row] = kit.eventually(lambda: self.rows(f"id = '{request_id}'"), what=f"{request_id} is in request_logs")
        return row

    def ids(self, condition="true"):
        return {row[0] for row in self.postgres.psql(f"SELECT id FROM pandora.request_logs WHERE {condition}", self.database)}

    def quota(self, environment, service):
        """used, available, held, and what the ledger says was used in this period."""
        [row] = self.postgres.psql(f"""
            SELECT used_request, available_request, held_request,
                   (SELECT sum(used_delta) FROM pandora.quota_ledger l WHERE l.environment_id = e.environment_id
                       AND l.service_id = e.service_id AND l.period = e.period)
              FROM pandora.environment_service e
             WHERE environment_id = {environment.id} AND service_id = {environment.services[service]}""", self.database)
        return [int(one) if one else None for one in row]
