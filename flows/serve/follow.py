"""Follow an alias: a new version starts beside the old one, is checked, and takes over; or is refused.

registry -> pull (digest) -> engine -> stored rows -> takes over -> the old one drains and ends
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flows.serve.engines import Engine, Target, say
from flows.serve.plan import ServePlan
from flows.serve.state import ServingState
from flows.serve.stored_texts import give_back
from tasks.contracts import digest
from tasks.contracts.errors import PrecisError, RegistryError, StoreUnavailable
from tasks.contracts.records import Prediction

BACKOFF_SECONDS = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)
STEADY_SECONDS = 120.0  # an engine that ran so long starts the count of restarts again
CHANGED, REFUSED = "precis.serving.changed", "precis.serving.refused"
Start = Callable[[Target, Path], Awaitable[Engine]]
Tell = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Package:
    """A checked package on this machine, and the stored rows that its engines must give back."""

    folder: Path
    rows: list[Prediction]


class View(Protocol):
    """What the follower asks of the registry (registry_view.py)."""

    def target(self) -> Target:
        """The version that is to be served now."""
        ...

    def package(self, target: Target) -> Path:
        """Its package, checked."""
        ...

    def rows(self, target: Target, count: int) -> list[Prediction]:
        """Rows that it was judged by."""
        ...

    def forget_but(self, kept: set[str]) -> None:
        """Remove the packages of others."""
        ...


class Follower:
    """Keeps an engine of the right version answering."""

    def __init__(
        self, plan: ServePlan, state: ServingState, view: View, start: Start, tell: Tell
    ) -> None:
        """`tell`: sends an event, by its name and payload; it may wait, and never raises."""
        self.plan, self.state, self.view, self.start, self.tell = plan, state, view, start, tell
        self.notice = lambda: None  # is called when the alias has moved; as `tell`
        self.verified = lambda engine, rows: None  # stored texts were given back; as `tell`
        self.noticed: Target | None = None
        self.served: Target
        self.package: Package
        self.asked = asyncio.Event()  # look now, and try again what was refused
        self.refused: Target | None = None  # of where the alias points; not tried again by itself
        self.is_away = False  # it was refused since the store did not answer: it is tried again
        self.background: set[asyncio.Task[Any]] = set()
        self.ending = False

    async def run(self) -> None:
        """Serve until cancelled. Raises PrecisError when the first version cannot be served."""
        target = await self._looked()
        await self._take_over(target, *await self._checked(target))
        while True:
            again = await self._pause()
            try:
                target = await self._looked()
                self.state.registry_error = None
            except Exception as error:  # noqa: BLE001 - whatever MLflow raises, the old one serves on
                if self.state.registry_error is None:
                    say(
                        f"{self.plan.name}: the registry does not answer ({error}); serving goes on"
                    )
                self.state.registry_error = str(error)
                continue
            if target == self.served:
                self.refused = None
            elif target.digest == self.served.digest:  # a rollback's version of the same model
                self._rename(target)
            elif target != self.refused or again or self.is_away:
                await self._change(target)

    async def _looked(self) -> Target:
        """What the reference names now."""
        target = await asyncio.to_thread(self.view.target)
        if target != self.noticed:
            self.noticed = target
            self._in_background(asyncio.to_thread(self.notice))
        return target

    async def end(self) -> None:
        """End what runs: called once requests are answered, or no longer waited for."""
        self.ending = True
        for task in self.background:
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)
        if engine := self.state.put(None):
            await engine.drain(0)

    async def _pause(self) -> bool:
        """Wait until it is time to look again; whether that was asked for."""
        try:
            await asyncio.wait_for(self.asked.wait(), self.plan.poll_seconds)
        except TimeoutError:
            return False
        self.asked.clear()
        return True

    async def _change(self, target: Target) -> None:
        """Try to serve another version; the one that is served stays where that fails."""
        was_away = self.is_away and self.refused == target
        if not was_away:
            say(
                f"{target.title} is to be served: pulling and checking it beside {self.served.title}"
            )
        try:
            await self._take_over(target, *await self._checked(target))
            self.refused = None
        except Exception as error:  # noqa: BLE001 - a version may fail in any way, and is refused then
            self.refused, self.is_away = target, isinstance(error, StoreUnavailable)
            if was_away and self.is_away:
                return  # told before
            self.state.refuse(target, str(error))
            say(f"REFUSED {target.title}, {self.served.title} stays: {error}")
            self._tell(REFUSED, target, reason=str(error), serving=self.served.number)

    def _rename(self, target: Target) -> None:
        """The model that is served has another version number now."""
        say(
            f"{target.title} is the model of {self.served.title}: it is served on, under its new number"
        )
        before, self.served, self.refused = self.served, target, None
        if self.state.engine:
            self.state.engine.target = target
        self._tell(CHANGED, target, before=before.number)

    async def _checked(self, target: Target) -> tuple[Engine, Package]:
        """A running engine of this version that has given back stored texts.

        Raises PrecisError for a version whose files or texts are not those that were judged, or that has
        none to compare with; StoreUnavailable where they cannot be read now.
        """
        package = await asyncio.to_thread(self._fetched, target)
        return await self._started(target, package), package

    def _fetched(self, target: Target) -> Package:
        try:
            folder = self.view.package(target)
            rows = self.view.rows(target, self.plan.check_rows)
        except PrecisError:
            raise
        except Exception as error:  # a store's own client raises what it likes
            raise StoreUnavailable(
                f"{target.title} cannot be read from the store: {error}"
            ) from error
        if self.plan.check_rows and not rows:
            raise RegistryError(
                f"{target.title} has no stored texts left to compare with: its run has no folder sealed/gate "
                "or gate, or is gone; restore it from a backup, or serve without comparing: --check-rows 0"
            )
        return Package(folder, rows)

    async def _started(self, target: Target, package: Package) -> Engine:
        engine = await self.start(target, package.folder)
        try:
            await give_back(engine, package.rows)
        except BaseException:
            await asyncio.shield(engine.drain(0))
            raise
        return engine

    async def _take_over(self, target: Target, engine: Engine, package: Package) -> None:
        before = self.state.put(engine)
        self.served, self.package = target, package
        rows = self.state.rows_checked = len(package.rows)
        say(
            f"{target.title} is served ({engine.info.get('engine')}, {rows} stored texts given back)"
        )
        self._tell(CHANGED, target, before=before.target.number if before else None)
        if rows:
            self._in_background(asyncio.to_thread(self.verified, engine, rows))
        self._in_background(self._watch(engine))
        if before:
            self._in_background(before.drain(self.plan.request_timeout_seconds))
        kept = {target.digest, *([before.target.digest] if before else [])}
        await asyncio.to_thread(self.view.forget_but, kept)

    async def _watch(self, engine: Engine) -> None:
        """Start the same version again when its engine ends by itself, later and later."""
        tries, started = 0, asyncio.get_running_loop().time()
        while True:
            while not engine.has_ended():
                await asyncio.sleep(0.1)
            if not self._is_current(engine):
                return
            if asyncio.get_running_loop().time() - started > STEADY_SECONDS:
                tries = 0
            say(f"the engine of {engine.target.title} ended; it is started again")
            while self._is_current(engine):
                await asyncio.sleep(BACKOFF_SECONDS[min(tries, len(BACKOFF_SECONDS) - 1)])
                tries += 1
                if (new := await self._again(engine)) is None:
                    continue
                if not self._is_current(engine):  # another version took over meanwhile
                    await new.drain(0)
                    return
                self.state.put(new)
                await engine.drain(0)
                engine, started = new, asyncio.get_running_loop().time()
                break

    async def _again(self, engine: Engine) -> Engine | None:
        """A new engine of the same package; None where it did not start. The registry is not needed."""
        self.state.restarts += 1
        package, target = self.package, engine.target
        try:
            if await asyncio.to_thread(digest.of_folder, package.folder) != target.digest:
                await asyncio.to_thread(self.view.package, target)  # pulls it again
            return await self._started(target, package)
        except Exception as error:  # noqa: BLE001 - tried again, later
            say(f"{target.title} could not be started again: {error}")
            return None

    def _is_current(self, engine: Engine) -> bool:
        return self.state.engine is engine and not engine.retired and not self.ending

    def _tell(self, event: str, target: Target, **more: Any) -> None:
        payload = {"version": target.number, "digest": target.digest, **more}
        self._in_background(asyncio.to_thread(self.tell, event, payload))

    def _in_background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)
