"""Gateways and a PostgreSQL of their own, for tests that break them."""

import conftest
import kit
import tenants as tenancy


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

    def remove(self):
        for gateway in self.gateways:
            if gateway.running():
                gateway.kill()
        self.postgres.remove()
