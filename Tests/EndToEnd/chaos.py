"""What goes wrong at random while gateways are under load."""

import contextlib
import random
import signal
import threading
import time


class Chaos(threading.Thread):
    """Calls something again and again, at random intervals, until it is told to stop."""

    def __init__(self, pause, action, *arguments):
        super().__init__(daemon=True)
        self.pause, self.action, self.arguments, self.fault, self.count = pause, action, arguments, None, 0
        self.stopping = threading.Event()
        self.start()

    def run(self):
        while not self.stopping.wait(random.uniform(*self.pause)):
            try:
                self.action(*self.arguments)
                self.count += 1
            except BaseException as fault:
                self.fault = fault
                return

    def stop(self):
        self.stopping.set()
        self.join(120)
        if self.fault:
            raise self.fault


def kill_a_gateway(site):
    """Whatever it is about: also while it stops in order or starts, where somebody else may start it again."""
    gateway = random.choice(site.gateways)
    process = gateway.process
    process.kill()
    with gateway.restarting:
        process.wait()
        if gateway.process is process:
            time.sleep(random.uniform(0, 0.5))
            gateway.start()


def stop_a_gateway(site):
    """In order, then it is started again; it may be killed amid both, and paused."""
    gateway = random.choice(site.gateways)
    with gateway.restarting:
        code = gateway.stop()
        assert code in (0, -signal.SIGKILL), f"{gateway.name} exited {code}:\n{gateway.log()[-4000:]}"
        time.sleep(random.uniform(0, 0.5))
        try:
            gateway.start()
        except RuntimeError:
            if gateway.process.returncode != -signal.SIGKILL:  # Else whoever killed it waits to start it.
                raise


def pause_a_gateway(site):
    """For longer than leases may be used and answers may take; it may be killed meanwhile."""
    process = random.choice(site.gateways).process
    process.send_signal(signal.SIGSTOP)
    time.sleep(random.uniform(0, 8))
    process.send_signal(signal.SIGCONT)


def stop_postgresql(site):
    """In order, at once, or by its death, with nothing said to anyone."""
    site.postgres.stop(random.choice([signal.SIGINT, signal.SIGQUIT, signal.SIGKILL]))
    time.sleep(random.uniform(0, 1.5))
    site.postgres.start()


def stall_postgresql(site):
    """Connections stand, nothing is answered."""
    with site.postgres.stalled():
        time.sleep(random.uniform(0, 2))


def turn_the_period(site, environment):
    with contextlib.suppress(OSError):
        site.tenants.sql(
            f"UPDATE pandora.project_service SET next_reset = clock_timestamp() WHERE project_id = {environment.project_id}")


def edit_the_limit(command, environment):
    """As an operator does, also where nothing is limited then, or less is allowed than is used."""
    limit = random.choice(["unlimited", "0", "50", "5000"])
    command.run("quota", "set", "--environment", f"{environment.client}/shop/prod", "--service", "orders", "--max", limit, check=False)
