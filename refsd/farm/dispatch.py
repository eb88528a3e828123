"""Units given to the workers of a cluster, one each at a time, until all of them are done.

The caller keeps the list, not Dask's scheduler: it knows what a unit costs, which worker is not to
be asked again, and that a second worker may do what the first has not finished.
"""

import hashlib
import json
import logging
import os
import queue
import statistics
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from refsd import errors
from refsd.atomic import writing
from refsd.errors import ResourceError
from refsd.farm import worker
from refsd.farm.units import Job, Unit, settle

logger = logging.getLogger(__name__)

FAULTS = 3  # of a unit, after which it is given up
STRIKES = 2  # of a worker, one after the other, after which it is used no more
SLOW = 1.5  # times what a unit is expected to take, after which an idle worker does it too,
AT_LEAST = 2.0  # and these seconds
LOOK = 1.0  # seconds between two looks at who is there
FETCHES = 4  # results that are on their way at a time
REFUSALS = ("UsageError", "ModelError")  # nobody could do it, so nobody else is asked


@dataclass(eq=False)
class Seat:
    """A worker: greeted, then free and busy in turns, until it is set aside."""

    address: str
    name: str
    state: str = "greeted"
    strikes: int = 0
    shared: bool = False


@dataclass(eq=False)
class Attempt:
    """One unit at one worker, or its greeting (no unit)."""

    seat: Seat
    unit: Unit | None
    future: Any
    made: Path  # where its results go first
    begun: float = field(default_factory=time.monotonic)
    ended: bool = False  # the work; the answer is on its way


class Dispatch:
    """Deals a job's units out; `scratch` is a new folder, in `folder` where the results go.

    `grows` says whether workers may come later, for which it waits while it has none to use.
    """

    def __init__(self, client: Any, job: Job, folder: Path, scratch: Path,
                 on_done: Callable[[Unit, dict[str, Any]], None], patience: float,
                 grows: bool = True):
        self.client, self.folder, self.scratch = client, folder, scratch
        self.on_done, self.patience, self.grows = on_done, patience, grows
        self.head = json.dumps({"kind": job.kind, "setup": job.setup, "identity": job.identity})
        self.seats: dict[str, Seat] = {}
        self.attempts: set[Attempt] = set()
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.fetching = ThreadPoolExecutor(FETCHES, thread_name_prefix="refsd-results")
        self.numbers = count()
        self.looked = self.served = float("-inf")
        self.pace: list[float] = []  # seconds by cost, of each unit that is done
        self.left: dict[str, Unit] = {}
        self.waiting: list[Unit] = []
        self.faults: dict[str, list[str]] = {}
        self.tried: dict[str, set[Seat]] = {}
        self.warned: set[str] = set()

    def run(self, units: list[Unit]) -> dict[str, str]:
        """Have the units done; gives the names of those that could not be, and why.

        Raises the UsageError or ModelError of a unit, which names it, and ResourceError when there
        is no worker for longer than `patience` seconds, or no scheduler.
        """
        self.waiting = sorted(units, key=lambda unit: -unit.cost)
        self.left = {unit.key: unit for unit in units}
        self.faults = {unit.key: [] for unit in units}
        self.tried = {unit.key: set() for unit in units}
        self.served = time.monotonic()
        try:
            while self.left:
                self._look()
                self._hand_out()
                self._hear()
        finally:
            self.fetching.shutdown(wait=False, cancel_futures=True)
        return {unit.name: self.faults[unit.key][-1] for unit in units
                if len(self.faults[unit.key]) >= FAULTS}

    def _look(self):
        """Greet who has come, and take back what was given to those who have left."""
        now = time.monotonic()
        if now - self.looked < LOOK:
            return
        self.looked = now
        there = self._addresses()
        for address in there - self.seats.keys():
            self.seats[address] = seat = Seat(address, f"worker {address}")
            self._start(seat, None, self.scratch, worker.greet, self.head, str(self.scratch))
        for address in self.seats.keys() - there:
            seat = self.seats.pop(address)
            for attempt in [each for each in self.attempts if each.seat is seat]:
                self.attempts.discard(attempt)
                attempt.future.cancel()
                self._fault(attempt, "it ended", strike=False)
        if any(seat.state != "aside" for seat in self.seats.values()):
            self.served = now
        elif now - self.served > self.patience or (self.seats and not self.grows):
            raise ResourceError(
                f"there is no worker that can be used: {len(self.left)} of {len(self.faults)} are "
                "not done. Start workers, or mend what is said of those that are set aside, and "
                "run the command again, which goes on")

    def _addresses(self):
        try:
            return set(self.client.nthreads())
        except (OSError, TimeoutError) as error:
            raise ResourceError(
                f"the scheduler does not answer any more ({error}): {len(self.left)} of "
                f"{len(self.faults)} are not done. Start one, and run the command again, which "
                "goes on") from None

    def _hand_out(self):
        """A unit to each that is free: one that waits, or else one that is late elsewhere."""
        free = [seat for seat in self.seats.values() if seat.state == "free"]
        if not free:
            return
        usable = {seat for seat in self.seats.values() if seat.state in ("free", "busy")}
        late = None if self.waiting else self._late()
        for seat in free:
            unit = self._next(seat, usable)
            if unit is None and late:
                unit = next((each.unit for each in late if each.seat is not seat), None)
                late = [each for each in late if each.unit is not unit]
            if unit is None:
                continue
            seat.state = "busy"
            made = self.scratch / f"{next(self.numbers):06d}"
            self._start(seat, unit, made, worker.do, self.head, json.dumps(asdict(unit)), str(made),
                        seat.shared)

    def _next(self, seat, usable):
        """The costliest unit that waits; one that failed here only if it did so everywhere."""
        for index, unit in enumerate(self.waiting):
            if seat not in self.tried[unit.key] or usable <= self.tried[unit.key]:
                return self.waiting.pop(index)
        return None

    def _late(self):
        """Who takes much longer than a unit should, alone with it; the longest first."""
        if not self.pace:
            return []
        pace, now = statistics.median(self.pace), time.monotonic()
        copies = Counter(each.unit.key for each in self.attempts if each.unit is not None)
        late = [each for each in self.attempts if each.unit is not None and not each.ended
                and each.unit.key in self.left and copies[each.unit.key] == 1
                and now - each.begun > max(AT_LEAST, SLOW * pace * each.unit.cost)]
        return sorted(late, key=lambda each: each.begun)

    def _start(self, seat, unit, made, function, *args):
        future = self.client.submit(function, *args, workers=[seat.address], pure=False, retries=0,
                                    allow_other_workers=False)
        attempt = Attempt(seat, unit, future, made)
        self.attempts.add(attempt)
        future.add_done_callback(lambda _: self.events.put((attempt, None)))

    def _hear(self):
        """Wait a moment for an event, and take all that there are in another moment."""
        timeout, until = LOOK / 4, None
        while until is None or time.monotonic() < until:
            try:
                event = self.events.get(timeout=timeout)
            except queue.Empty:
                return
            timeout, until = 0, until or time.monotonic() + LOOK / 20
            self._happened(*event)

    def _happened(self, attempt, fetched):
        """A worker is done, or its answer has come."""
        if attempt not in self.attempts:
            return  # of a worker that is gone
        if fetched is not None:
            self.attempts.discard(attempt)
            error = fetched.exception()
            answer = fetched.result() if error is None else {
                "raised": "lost", "message": f"{type(error).__name__}: {error}"}
            attempt.future.release()
            self._answered(attempt, answer)
            return
        attempt.ended = True
        if attempt.seat.state == "busy":
            attempt.seat.state = "free"
        if attempt.unit is not None and attempt.unit.key not in self.left:
            self.attempts.discard(attempt)  # another was faster
            return
        self.fetching.submit(attempt.future.result).add_done_callback(
            lambda fetched: self.events.put((attempt, fetched)))

    def _answered(self, attempt, answer):
        seat, unit = attempt.seat, attempt.unit
        for message in {*answer.get("warned", ())} - self.warned:
            logger.warning("%s", message)
            self.warned.add(message)
        if "differs" in answer and (answer["differs"] or unit is not None):
            self._set_aside(seat, "; ".join(answer["differs"]))
            self._again(unit)
        elif unit is None and "raised" in answer:
            self._set_aside(seat, answer["message"])
        elif unit is None:
            seat.name = f"worker {seat.address} (process {answer['pid']} of {answer['host']})"
            seat.state, seat.shared = "free", answer["shared"]
        elif unit.key not in self.left:
            return
        elif answer.get("raised") in REFUSALS:
            raise getattr(errors, answer["raised"])(f"{unit.name}, at {seat.name}: "
                                                        f"{answer['message']}")
        elif "raised" in answer:
            self._fault(attempt, answer["message"])
        elif bad := _altered(answer) or _lacking(attempt, answer):
            self._fault(attempt, bad)
        else:
            self._keep(attempt, answer)

    def _keep(self, attempt, answer):
        """Write the files, if they have not been written by the worker, and move them in place."""
        unit, made = attempt.unit, attempt.made
        for path, data in answer.get("files", {}).items():
            with writing(made / path):
                (made / path).parent.mkdir(parents=True, exist_ok=True)
                (made / path).write_bytes(data)
        settle(unit, made, self.folder)
        del self.left[unit.key]
        attempt.seat.strikes = 0
        self.pace.append((time.monotonic() - attempt.begun) / max(unit.cost, 1))
        self.on_done(unit, answer["said"])

    def _fault(self, attempt, why, *, strike=True):
        seat, unit = attempt.seat, attempt.unit
        if unit is None or unit.key not in self.left:
            return
        logger.warning("%s: %s: %s", unit.name, seat.name, why)
        self.faults[unit.key].append(f"{seat.name}: {why}")
        self.tried[unit.key].add(seat)
        if len(self.faults[unit.key]) >= FAULTS:
            del self.left[unit.key]
        self._again(unit)
        seat.strikes += strike
        if seat.strikes >= STRIKES and seat.state != "aside":
            self._set_aside(seat, f"{STRIKES} units in a row failed there")

    def _again(self, unit):
        """Let a unit wait once more, unless it waits or is being done elsewhere."""
        elsewhere = any(each.unit is unit for each in self.attempts)
        if unit is not None and unit.key in self.left and not elsewhere:
            self.waiting.append(unit)

    def _set_aside(self, seat, why):
        seat.state = "aside"
        logger.warning("%s is not used: %s", seat.name, why)


def _altered(answer):
    """What is said where a file is not the one whose digest came with it."""
    return next((f"{path} did not arrive as it was sent"
                 for path, data in answer.get("files", {}).items()
                 if hashlib.sha256(data).hexdigest() != answer["sha256"].get(path)), None)


def _lacking(attempt, answer):
    """What is said where a worker that shares the folder has not put a result there."""
    return next((f"{name} was not made" for name in attempt.unit.results
                 if "files" not in answer and not os.path.lexists(attempt.made / name)), None)
