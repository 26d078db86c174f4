"""The command line as somebody uses it: a database, a tenant, a key, quota, the log."""

import getpass
import json
import subprocess
import threading

import pytest

import kit

SPOOL = "11111111-1111-4111-8111-111111111111"


@pytest.fixture(scope="module")
def database(postgres):
    """Empty, and nobody else's."""
    postgres.psql("CREATE DATABASE command_line", database="postgres")
    yield postgres.url("command_line")


@pytest.fixture(scope="module")
def sql(postgres):
    return lambda statement: postgres.psql(statement, database="command_line")


@pytest.fixture(scope="module")
def pandora(binary, database):
    return kit.Pandora(binary, database)


@pytest.fixture(scope="module")
def tenant(pandora):
    """acme/shop/prod with a key and 800 of the project's 1,000 units of orders/1."""
    before = pandora.run("client", "list", check=False)
    assert before.returncode == 1 and "run pandora migrate" in before.stderr
    unmigrated = pandora.run("migrate", "--check", check=False)
    assert unmigrated.returncode == 1 and "no schema" in unmigrated.stderr
    first = pandora.run("migrate").stdout.splitlines()
    assert first[0] == "applied 0001_create_schema.sql" and len(first) >= 8
    assert "as it should be" in pandora.run("migrate").stdout
    pandora.run("migrate", "--check")

    pandora.run("client", "create", "acme", "--email", "ops@acme.example")
    pandora.run("project", "create", "acme/shop")
    pandora.run("environment", "create", "acme/shop/prod")
    pandora.run("environment", "create", "acme/shop/test")
    pandora.run("service", "create", "orders")
    pandora.run("quota", "set", "--project", "acme/shop", "--service", "orders", "--max", 1000, "--reset", "monthly")
    pandora.run("quota", "set", "--environment", "acme/shop/prod", "--service", "orders", "--max", 800)
    return pandora.json("key", "create", "--environment", "acme/shop/prod", "--name", "web")


def refused(done, words):
    """The command said no, on standard error and nowhere else."""
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and words in done.stderr, done.stderr


def ship(sql, identifiers, spool=SPOOL, **columns):
    """What the shipper does: rows and their announcement in one transaction."""
    names = "".join(f", {name}" for name in columns)
    values = "".join(f", {value}" for value in columns.values())
    rows = ", ".join(f"('{identifier}', 'success', '{spool}'{values})" for identifier in identifiers)
    sql(f"BEGIN; INSERT INTO pandora.request_logs (id, execution_status, spool_id{names}) VALUES {rows}; "
        f"SELECT pg_notify('pandora_log', '{spool} {min(identifiers)} {max(identifiers)}'); COMMIT")


def new_ids(sql, count):
    return sorted(row[0] for row in sql(f"SELECT pandora.new_typeid('req') FROM generate_series(1, {count})"))


def test_a_tenant_is_listed_and_shown(pandora, tenant):
    assert [row["name"] for row in pandora.json("client", "list")] == ["acme"]
    assert [row["path"] for row in pandora.json("project", "list", "--client", "acme")] == ["acme/shop"]
    paths = [row["path"] for row in pandora.json("environment", "list", "--project", "acme/shop")]
    assert paths == ["acme/shop/prod", "acme/shop/test"]
    environment = pandora.json("environment", "show", "acme/shop/prod")
    assert environment == pandora.json("environment", "show", environment["id"])
    assert pandora.json("service", "show", "orders") == pandora.json("service", "show", "orders/1")
    table = pandora.run("environment", "list").stdout.splitlines()
    assert table[0].split() == ["ID", "PATH", "STATUS", "CREATED", "AT"] and "acme/shop/prod" in table[1]


def test_a_secret_is_shown_once(pandora, tenant, sql):
    secret = tenant["secret"]
    assert secret.startswith("pk_" + tenant["prefix"]) and len(secret) == 42
    for command in (["key", "list"], ["key", "show", tenant["id"]], ["key", "show", tenant["id"], "--json"]):
        assert secret not in pandora.run(*command).stdout
    everything = sql("SELECT detail FROM pandora.audit_log")
    assert secret not in str(everything)
    mistaken = pandora.run("key", "show", secret, check=False)
    refused(mistaken, "public id")
    assert secret not in mistaken.stderr


def test_keys_live_and_end(pandora, tenant):
    key = pandora.json("key", "create", "--environment", "acme/shop/test", "--expires", "30d")
    assert key["expires_at"] and not key["expired"]
    assert pandora.json("key", "disable", key["id"])["status"] == "disabled"
    refused(pandora.run("key", "rotate", key["id"], "--expires", "never", check=False), "disabled")
    assert pandora.json("key", "enable", key["id"])["status"] == "enabled"
    refused(pandora.run("key", "rotate", key["id"], check=False), "expires")
    new = pandora.json("key", "rotate", key["id"], "--expires", "2099-01-31", "--grace", "1h")
    assert new["replaces"] == key["id"] and new["expires_at"] == "2099-01-31T00:00:00.000000Z"
    old = pandora.json("key", "show", key["id"])
    assert old["expires_at"] == new["old_expires_at"] and not old["expired"]
    assert pandora.json("key", "update", new["id"], "--name", "ci", "--expires", "never")["expires_at"] is None
    assert pandora.json("key", "rotate", new["id"], "--grace", "0s")["name"] == "ci"
    assert pandora.json("key", "show", new["id"])["expired"]
    assert "expired" in pandora.run("key", "list", "--environment", "acme/shop/test").stdout


def test_statuses_change(pandora, tenant):
    for noun, reference in [("project", "acme/shop"), ("environment", "acme/shop/test"), ("service", "orders/1")]:
        assert pandora.json(noun, "update", reference, "--status", "disabled")["status"] == "disabled"
        assert pandora.json(noun, "update", reference, "--status", "enabled")["status"] == "enabled"
    renamed = pandora.run("environment", "update", "acme/shop/prod", "--name", "live", check=False)
    refused(renamed, "cannot be changed")
    assert "Create an environment with the new name" in renamed.stderr


def test_quota_is_shared_out(pandora, tenant, sql):
    quota = pandora.json("quota", "show", "--environment", "acme/shop/prod", "--service", "orders")
    numbers = ("limit", "used", "held", "available", "free", "period", "reset", "overcommitted")
    assert [quota[name] for name in numbers] == [800, 0, 0, 800, 800, 1, "monthly", False]
    place = ["quota", "set", "--environment", "acme/shop/test", "--service", "orders", "--max"]
    refused(pandora.run(*place, 201, check=False), "would have 1001 units of service \"orders/1\", but the project has 1000")
    refused(pandora.run(*place, "unlimited", check=False), "would be unlimited")
    pandora.run(*place, 200)
    refused(pandora.run("quota", "set", "--project", "acme/shop", "--service", "orders", "--max", 999, check=False), "1000 units")
    project = pandora.json("quota", "show", "--project", "acme/shop", "--service", "orders")
    assert (project["limit"], project["shared"], project["environments"]) == (1000, 1000, 2)
    assert [row["limit"] for row in pandora.json("quota", "list", "--project", "acme/shop")] == [800, 200]

    # What is used stays used when the limit goes below it.
    sql("UPDATE pandora.environment_service SET used_request = 150, available_request = 50, held_request = 20 WHERE max_request = 200")
    lowered = pandora.json(*place, 100)
    assert (lowered["available"], lowered["free"], lowered["overcommitted"]) == (-50, 0, True)
    assert "overcommitted" in pandora.run("quota", "show", "--environment", "acme/shop/test").stdout

    refused(pandora.run("quota", "unset", "--project", "acme/shop", "--service", "orders", check=False), "still have")
    pandora.run("quota", "unset", "--environment", "acme/shop/test", "--service", "orders")
    refused(pandora.run("quota", "show", "--environment", "acme/shop/test", "--service", "orders", check=False), "not assigned")


def test_a_service_comes_to_a_project_first(pandora, tenant):
    pandora.run("service", "create", "reports", "--version", "2024-10", "--status", "deprecated")
    place = ["quota", "set", "--environment", "acme/shop/prod", "--service", "reports", "--max", "unlimited"]
    early = pandora.run(*place, check=False)
    refused(early, "not assigned to the project 'acme/shop'")
    assert "pandora quota set --project 'acme/shop'" in early.stderr
    project = ["quota", "set", "--project", "acme/shop", "--service", "reports"]
    refused(pandora.run(*project, "--reset", "daily", check=False), "--max")
    made = pandora.json(*project, "--max", "unlimited", "--reset", "biweekly", "--anchor", "2026-01-05 06:00",
                        "--time-zone", "Europe/Madrid")
    assert (made["limit"], made["reset"], made["anchor"], made["time_zone"]) == (None, "biweekly", "2026-01-05 06:00:00", "Europe/Madrid")
    assert pandora.json(*project, "--reset", "never")["next_reset"] is None
    refused(pandora.run(*project, "--time-zone", "Mars/Olympus", check=False), "Mars/Olympus")
    assert pandora.json(*place)["limit"] is None
    assert "unlimited" in pandora.run("quota", "list", "--service", "reports").stdout


@pytest.mark.parametrize("arguments, words", [
    (["client", "show", "nobody"], "there is no client 'nobody'"),
    (["project", "show", "acme/web"], "the client 'acme' has no project 'web'"),
    (["environment", "show", "acme/shop/live"], "the project 'acme/shop' has no environment 'live'"),
    (["environment", "show", "shop"], "CLIENT/PROJECT/ENVIRONMENT"),
    (["key", "create", "--environment", "acme/web/prod"], "the client 'acme' has no project 'web'"),
    (["service", "show", "billing"], "there is no service 'billing'"),
    (["client", "create", "acme"], "of that name already"),
    (["project", "create", "acme/Web"], "no name for a project"),
    (["key", "create", "--environment", "acme/shop/prod", "--expires", "2001-01-01"], "expired already"),
    (["trace", "req_00000000000000000000000000"], "no hop"),
])
def test_refusals_say_what_was_wrong(pandora, tenant, arguments, words):
    refused(pandora.run(*arguments, check=False), words)


@pytest.mark.parametrize("arguments", [
    ["client", "update", "acme"],
    ["quota", "set", "--service", "orders", "--max", "1"],
    ["quota", "set", "--environment", "acme/shop/prod", "--service", "orders"],
    ["quota", "set", "--environment", "acme/shop/prod", "--service", "orders", "--max=-1"],
    ["quota", "set", "--environment", "acme/shop/prod", "--service", "orders", "--max", "1", "--reset", "daily"],
    ["quota", "set", "--project", "acme/shop", "--service", "orders", "--reset", "yearly"],
    ["quota", "set", "--project", "acme/shop", "--service", "orders", "--anchor", "tomorrow"],
    ["key", "create", "--environment", "acme/shop/prod", "--expires", "2027-02-30"],
    ["key", "rotate", "key_x", "--grace", "1"],
    ["project", "update", "acme/shop", "--status", "gone"],
    ["logs", "--status", "700"],
    ["trace", "nonsense"],
    ["nonsense"],
])
def test_usage_errors_exit_with_64(pandora, tenant, arguments):
    done = pandora.run(*arguments, check=False)
    assert done.returncode == 64 and done.stdout == "" and "Usage:" in done.stderr, done


def test_every_change_is_in_the_audit_log(tenant, sql):
    actors = sql("SELECT DISTINCT actor FROM pandora.audit_log")
    assert actors == [[f"cli:{getpass.getuser()}"]]
    kinds = {row[0] for row in sql("SELECT DISTINCT object_kind FROM pandora.audit_log WHERE action IN ('create', 'assign')")}
    assert kinds == {"client", "project", "environment", "service", "api_key", "project_service", "environment_service"}


def test_a_password_is_never_printed(binary):
    for url in ("postgres://u:geheim@127.0.0.1:1/x", "postgres://u:geheim@127.0.0.1:x/x", "mysql://u:geheim@h/x"):
        done = kit.Pandora(binary, "").run("client", "list", "--database", url, check=False)
        assert done.returncode != 0 and "geheim" not in done.stdout + done.stderr, done
    nothing = subprocess.run([binary, "client", "list"], capture_output=True, text=True, env={"PATH": "/usr/bin"})
    assert nothing.returncode == 64 and "PANDORA_DATABASE_URL" in nothing.stderr


def test_the_database_may_be_that_of_a_configuration_file(binary, tenant, database, tmp_path):
    (tmp_path / "pandora.yaml").write_text(f"""
listen: 127.0.0.1:8080
database:
  url: {database}
upstreams:
  hello:
    targets: [127.0.0.1:9000]
routes:
  - name: everything
    service: orders
    upstream: hello
""")
    done = kit.Pandora(binary, "postgres://nobody@127.0.0.1:1/x").run("client", "list", "--json", "--config", tmp_path / "pandora.yaml")
    assert json.loads(done.stdout)[0]["name"] == "acme"
    missing = kit.Pandora(binary, "").run("client", "list", "--config", tmp_path / "none.yaml", check=False)
    assert missing.returncode == 1 and "cannot read" in missing.stderr


def test_the_log_is_read_and_a_chain_drawn(pandora, tenant, sql):
    key, environment = tenant["id"], pandora.json("environment", "show", "acme/shop/prod")["id"]
    service = pandora.json("service", "show", "orders")["id"]
    root, second, third, stranger = new_ids(sql, 4)
    about = {"environment_id": environment, "service_id": service, "status_code": 200, "units": 1, "method": "'GET'",
             "path": "'/orders/\x1b[2J'", "route": "'orders-read'", "duration_us": 250000}
    ship(sql, [root], api_key=f"'{key}'", **about)
    ship(sql, [second, third], start_point=f"'{root}'", **about)
    ship(sql, [stranger], status_code=404)

    def ids(*arguments):
        return [row["id"] for row in pandora.json("logs", *arguments)]

    assert ids() == [root, second, third, stranger]
    assert ids("--limit", 2) == [third, stranger] and ids("--since", "1h") == ids()
    assert ids("--environment", "acme/shop/prod") == [root, second, third] == ids("--service", "orders")
    assert ids("--key", key) == [root] and ids("--status", "4xx") == [stranger] == ids("--status", "404")
    assert ids("--status", "success", "--chain", third) == [root, second, third]
    row = pandora.json("logs", "--key", key)[0]
    assert (row["environment"], row["service"], row["units"]) == ("acme/shop/prod", "orders/1", 1)

    table = pandora.run("logs").stdout
    assert "\x1b" not in table and table.splitlines()[0].startswith("TIME") and "250.0 ms" in table

    for hop in (root, second, third, root + ".0123456789abc"):
        chain = pandora.json("trace", hop)
        assert chain["chain"] == root and [row["id"] for row in chain["hops"]] == [root, second, third]
        assert chain["units"] == 3 and chain["hops"][0]["offset_us"] == 0
    drawn = pandora.run("trace", second).stdout.splitlines()
    assert "3 hops" in drawn[0] and "3 units" in drawn[0] and len(drawn) == 5
    assert all("█" in line and "orders-read" in line for line in drawn[2:])


def test_the_log_is_followed(pandora, tenant, sql):
    follower = subprocess.Popen(
        [pandora.binary, "logs", "--follow", "--json", "--limit", "0", "--database", pandora.database_url],
        stdout=subprocess.PIPE, text=True)
    seen = []
    reader = threading.Thread(target=lambda: [seen.append(json.loads(line)["id"]) for line in follower.stdout], daemon=True)
    reader.start()

    def listening():
        return sql("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pandora-cli' "
                   "AND query ~ 'ORDER BY l.id DESC'")

    try:
        kit.eventually(listening, what="the follower has begun")
        first, second, third = new_ids(sql, 3), new_ids(sql, 3), new_ids(sql, 3)
        other = SPOOL.replace("1", "2")
        ship(sql, second, other)
        ship(sql, first)
        kit.eventually(lambda: len(seen) >= 6, what="both batches are shown")
        sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'pandora-cli'")
        ship(sql, third)
        kit.eventually(lambda: len(seen) >= 9, what="following goes on after the connection was lost")
        assert sorted(seen) == sorted(first + second + third)
    finally:
        follower.kill()
        follower.wait()
        reader.join(kit.PATIENCE)
