"""The faults of servers: killed, or refusing connections, and back some seconds later."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import moments
from home import Home
from servers_home import ServersHome
from striking import Struck, begin, challenger


@dataclass(frozen=True)
class Away:
    """A server that runs need is killed with -9, or refuses connections, and is back some seconds later."""

    server: str
    refuses: bool = False

    @property
    def name(self) -> str:
        return (
            f"{self.server} refuses connections"
            if self.refuses
            else f"kill -9: {self.server} server"
        )

    def strike(self, home: Home, rng: random.Random) -> Struck:
        assert isinstance(home, ServersHome)
        moment = moments.drawn(rng)
        settings = challenger(rng, moment)
        seconds = round(rng.uniform(0.0, 20.0), 1)
        process, log, watch, met = begin(home, settings, moment)
        landed = moments.place(watch) if met else "not met: the run had ended"
        if self.refuses:
            home.relay.refuse()
        else:
            home.servers.kill(self.server)
        time.sleep(seconds)
        if self.refuses:
            home.relay.serve_again()
        else:
            home.servers.start(self.server)
        ended = home.wait(process, log)
        return Struck(f"{moment}, for {seconds} s", landed, [ended], settings=settings)
