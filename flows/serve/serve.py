"""`precis serve`: the proxy and the follower in one process, until Ctrl-C or TERM.

Engines are processes of their own, which end with this one, also by kill -9.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import uvicorn

from flows.serve.engines import EngineStarter, say
from flows.serve.events import noter, noticer, teller
from flows.serve.follow import Follower, Start, View
from flows.serve.plan import ServePlan
from flows.serve.proxy import Proxy
from flows.serve.registry_view import RegistryView
from flows.serve.state import ServingState
from tasks.contracts.errors import PrecisError
from tasks.processes import workspace

KEEP_ALIVE_SECONDS = 75  # longer than clients and load balancers keep an idle connection
OTHER_DESCRIPTORS = 200  # the registry, logs, idle connections
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Server(uvicorn.Server):
    """uvicorn, whose signals are handled here."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them alone."""
        yield


def serve(plan: ServePlan) -> None:
    """Serve until a signal. Raises PrecisError when the port is taken or the first version is refused."""
    listener = listen(plan.host, plan.port)
    plan = replace(plan, max_requests=min(plan.max_requests, requests_at_once()))
    with contextlib.closing(listener), workspace.temporary_folder("serve") as sockets:
        # What is pulled is kept for the next start on the same port; one that is free comes not again.
        lasting = workspace.work_folder() / "serve" / f"{plan.name}-{plan.port}"
        folder = lasting if plan.port else sockets
        packages, logs = folder / "packages", folder / "logs"
        shutil.rmtree(logs, ignore_errors=True)  # of an earlier server on this port
        for each in (packages, logs):
            each.mkdir(parents=True, exist_ok=True)
        start = EngineStarter(plan, sockets, logs)
        if plan.host not in LOOPBACK and plan.api_key is None:
            say(
                f"--host {plan.host} without an API key: every machine that reaches it can ask the model"
            )
        view = RegistryView(plan.reference, packages)
        asyncio.run(run(plan, listener, view, start, _handle_signals))
    say("all of it has ended")


async def run(
    plan: ServePlan,
    listener: socket.socket,
    view: View,
    start: Start,
    control: Callable[[Server, Follower], None],
) -> None:
    """Proxy and follower, until the server is told to exit, or the first version is refused (PrecisError).

    `control`: is given what ends and refreshes them.
    """
    state = ServingState()
    follower = Follower(plan, state, view, start, teller(plan.name))
    follower.notice, follower.verified = noticer(plan), noter(plan.name)
    proxy = Proxy(plan, state, follower.asked.set)
    config = uvicorn.Config(
        proxy.app(),
        log_config=None,  # logging's dictConfig would close streams of handlers that others have set up
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(plan.request_timeout_seconds) + 1,
    )
    server = Server(config)
    control(server, follower)
    address = f"http://{plan.host}:{listener.getsockname()[1]}"
    say(f"{plan.reference} on {address}: starting its engine")
    listening = asyncio.create_task(server.serve(sockets=[listener]))
    following = asyncio.create_task(follower.run())
    try:
        await asyncio.wait((listening, following), return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        if following.done():
            await following  # raises what ended it
        await listening
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        server.should_exit = True
        await listening
        await follower.end()


def requests_at_once() -> int:
    """How many requests this process has descriptors for, once it may open as many as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS names no limit, and refuses to have none
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, (soft - OTHER_DESCRIPTORS) // 2)  # a client's connection, and one to the engine


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises PrecisError where it cannot: before anything else is done."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise PrecisError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}); name another --host or --port"
        ) from error


def _handle_signals(server: Server, follower: Follower) -> None:
    """Ctrl-C and TERM let running requests end; a second one does not. HUP: look at the registry now."""

    def end() -> None:
        if server.should_exit:
            server.force_exit = True
        server.should_exit = True
        say("ending: running requests are answered first")

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGHUP, follower.asked.set)
