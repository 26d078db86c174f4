"""Gateways and a PostgreSQL of their own, for tests that break them."""

import collections

import conftest
import kit
import tenants as tenancy


def judge_at_once(postgres):
    """From now on sweepers judge flows and holders at once, and not only when they have been connected for a minute."""
    judges = "unnest('{pandora.flow_expire, pandora.write_off_silent}'::regproc[]) AS judge"
    postgres.psql(rf"""
        SELECT regexp_replace(pg_get_functiondef(judge), E'\nBEGIN\n', E'\\&connected := ''0 s'';\n') FROM {judges} \gexec""")
    assert postgres.psql(f"SELECT DISTINCT pg_get_functiondef(judge) LIKE '%connected := ''0 s''%' FROM {judges}") == [["t"]]


class Site:
    """A PostgreSQL and gateways that a test may break."""

    def __init__(self, binary, services, directory, configuration=None, nodes=1, postgres=None, url=None):
        self.binary, self.services, self.directory = binary, services, directory
        self.postgres, self.gateways = postgres or kit.PostgreSQL(), []
        try:
            self.postgres.psql("CREATE DATABASE pandora", "postgres")
            kit.Pandora(binary, self.postgres.url()).run("migrate")
            self.tenants, self.log = tenancy.Tenants(self.postgres), tenancy.RequestLog(self.postgres)
            configuration = configuration or conftest.configuration(services, workers=2)
            for number in range(nodes):
                self.gateways.append(
                    kit.Gateway(f"site-{number}", binary, configuration, directory, url or self.postgres.url()))
        except BaseException:
            self.remove()
            raise

    @property
    def gateway(self):
        return self.gateways[0]

    def heard(self):
        """Waits until every gateway has heard of all changes so far; what it asked PostgreSQL before that may have to be asked again.

        Notifications arrive in the order of their commits. A gateway sends one to itself twice a second over the connection that
        hears them, the next one when the last is back: whoever sends the second one from now on has heard what is old by now.
        """
        [[now]] = self.postgres.psql("SELECT extract(epoch FROM clock_timestamp())")
        sent = collections.defaultdict(list)

        def twice():
            for process, at in self.postgres.psql(f"""
                SELECT pid, extract(epoch FROM query_start) FROM pg_stat_activity
                 WHERE query = 'SELECT pg_notify($1, $2)' AND extract(epoch FROM query_start) > {now}"""):
                if not sent[process] or float(at) > sent[process][-1] + 0.25:  # Else it is another message of the same one.
                    sent[process].append(float(at))
            return sum(len(moments) > 1 for moments in sent.values()) >= len(self.gateways)

        kit.eventually(twice, what="the gateways have heard of everything")

    def remove(self):
        for gateway in self.gateways:
            if gateway.running():
                gateway.kill()
        self.postgres.remove()
