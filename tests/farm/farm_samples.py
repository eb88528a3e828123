"""Units that do what their recipe says, and go wrong as it says; workers load this first."""

import logging
import os
import signal
import time

from refsd.errors import ModelError, ResourceError, UsageError
from refsd.farm import units, worker
from refsd.farm.units import Job, Unit

units.KINDS["samples"] = __name__
ERRORS = {"usage": UsageError, "model": ModelError, "resource": ResourceError, "fault": KeyError}


def dask_setup(worker):
    """Loading it is all."""


def unit(name, *, cost=1, **recipe):
    return Unit(units.key_of({"name": name}), name, recipe, cost, (f"{name}.txt",))


def job(*made, **setup):
    return Job("samples", setup, {"version": "1"}, made)


def open_worker(setup):
    return Worker(setup)


def finished(unit, folder):
    path = folder / unit.results[0]
    return {"text": path.read_text(), "again": True} if path.is_file() else None


class Worker:
    """Its identity is what its process is told to be."""

    def __init__(self, setup):
        if setup.get("broken") == os.getpid():
            raise ModelError("weights.safetensors: ends early. Fetch the file again")
        version = "2" if setup.get("other") == os.getpid() else "1"
        self.setup, self.identity = setup, {"version": version}

    def do(self, unit, folder):
        recipe = unit.recipe
        if "log" in self.setup:
            with open(self.setup["log"], "a") as file:
                print(unit.name, os.getpid(), file=file)
        if "once" in recipe:  # what goes wrong does so at the first attempt
            try:
                os.close(os.open(recipe["once"], os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                recipe = {}
        if "warns" in recipe:
            logging.getLogger("refsd.sample").warning(recipe["warns"])
        time.sleep(recipe.get("sleep", 0))
        if "raises" in recipe:
            raise ERRORS[recipe["raises"]](f"{unit.name} is not to be. Give another")
        text = f"{unit.name}\n" * unit.recipe.get("lines", 1)
        if "forgets" not in recipe:
            (folder / unit.results[0]).write_text(text)
        if recipe.get("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        return {"text": text, "pid": os.getpid()}


def greeted(head, scratch):
    """All is well, whoever is asked."""
    return {"host": "here", "pid": os.getpid(), "shared": True, "differs": []}


class Absent:
    """A function of a module that is not there, as refsd's are where it is not installed."""

    def __call__(self):
        """Dask wants a function."""

    def __reduce__(self):
        return __import__, ("not_installed_here",)


def altered_once(head, unit, folder, shared):
    """What a worker answers, with a byte of the first of its answers damaged on the way."""
    answer = worker.do(head, unit, folder, shared)
    once = f"{folder[:folder.rindex('/')]}/../altered"
    if not os.path.exists(once):
        open(once, "x").close()
        answer["files"] = {path: b"?" + data[1:] for path, data in answer["files"].items()}
    return answer
