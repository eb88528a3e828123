"""Units on a real Dask cluster of two processes, and what goes wrong there."""

import logging
import os
import re
import resource
import signal
import sys
import time
import urllib.request
from contextlib import suppress

import distributed
import farm_samples
import psutil
import pytest
from farm_samples import job, unit

from refsd.errors import ModelError, ResourceError, UsageError
from refsd.farm import cluster, dispatch

TEN = [unit(f"u{i}", cost=i) for i in range(10)]


def small(count):
    """A cluster of so many processes."""
    return distributed.LocalCluster(
        count, threads_per_worker=1, dashboard_address=":0", memory_limit=None,
        preload=farm_samples.__name__, silence_logs=60)


@pytest.fixture(scope="module")
def two():
    """A cluster of two processes."""
    with small(2) as made:
        yield made


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    """The loss of a worker is seen sooner."""
    monkeypatch.setattr(dispatch, "LOOK", 0.2)


@pytest.fixture
def client(two):
    """A client of it, which sees two workers again after a test that killed one."""
    with distributed.Client(two, set_as_default=False) as made:
        while len(made.run(os.getpid, on_error="ignore")) < 2:  # a dead one is listed for a while
            time.sleep(0.05)
        yield made


@pytest.fixture
def do(two, client, tmp_path):
    """Do the units; the names done, in order, and what was said of each."""

    def done(*units, patience=5.0, **setup):
        said = {}
        cluster.run(job(*units, **setup), two.scheduler_address, tmp_path,
                    lambda unit, about: said.update({unit.name: about}), patience=patience)
        return said

    return done


@pytest.fixture
def pids(client):
    """The process of each worker, by address."""
    return client.run(os.getpid)


@pytest.fixture
def sent(monkeypatch):
    """No worker shares the caller's folder: results come over the network."""
    monkeypatch.setattr(dispatch.Seat, "shared", property(lambda _: False, lambda *_: None))


def files(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def is_whole(folder, units):
    """Each unit's file, and nothing else."""
    return files(folder) == {f"{each.name}.txt": f"{each.name}\n" * each.recipe.get("lines", 1)
                             for each in units}


def test_all_are_done_by_both_the_costliest_first(do, tmp_path):
    units = [unit(f"u{i}", cost=i, sleep=0.05) for i in range(10)]
    said = do(*units)
    assert is_whole(tmp_path, units) and len(said) == 10
    assert len({about["pid"] for about in said.values()}) == 2
    assert set(list(said)[:2]) == {"u9", "u8"}


def test_results_come_over_the_network_too(do, tmp_path, sent):
    units = [*TEN[:5], unit("large", lines=1_000_000)]
    assert set(do(*units)) == {each.name for each in units}
    assert is_whole(tmp_path, units)


def test_what_a_worker_warns_of_is_said_once(do, caplog):
    do(*(unit(f"w{i}", warns="half of it is missing") for i in range(5)))
    assert caplog.messages.count("half of it is missing") == 1


def test_what_is_done_is_not_done_again(do, tmp_path, monkeypatch):
    (tmp_path / "u3.txt").write_text("mine")
    said = do(*TEN)
    assert said["u3"] == {"text": "mine", "again": True}
    assert [name for name, about in said.items() if "again" in about] == ["u3"]
    monkeypatch.setattr(cluster, "connected", None)  # with nothing left, nobody is asked
    assert all(about["again"] for about in do(*TEN).values())


@pytest.mark.parametrize("over", ["a shared folder", "the network"])
def test_a_worker_that_is_killed_costs_nothing(do, tmp_path, caplog, over, request):
    """It ends in the middle of a unit, of which there is half a result."""
    if over == "the network":
        request.getfixturevalue("sent")
    once = tmp_path.parent / f"{tmp_path.name}-once"
    units = [*TEN[:4], unit("deadly", cost=9, dies=True, once=str(once)), unit("long", sleep=2)]
    do(*units)
    assert is_whole(tmp_path, units) and once.exists()
    assert "deadly: worker tcp://127.0.0.1:" in caplog.text and "it ended" in caplog.text


def test_a_unit_that_ends_every_worker_is_given_up(do, tmp_path):
    with pytest.raises(ResourceError, match=r"1 of 5 could not be done: deadly: .*it ended.*again"):
        do(*TEN[:4], unit("deadly", dies=True), patience=30)
    assert is_whole(tmp_path, TEN[:4])


def test_a_unit_that_takes_too_long_is_done_by_an_idle_worker_too(
        do, tmp_path, client, monkeypatch):
    monkeypatch.setattr(dispatch, "AT_LEAST", 0.5)
    log, once = (tmp_path.parent / f"{tmp_path.name}-{name}" for name in ("log", "once"))
    units = [*TEN[:4], unit("slow", cost=5, sleep=60, once=str(once))]
    begun = time.monotonic()
    do(*units, log=str(log))
    assert time.monotonic() - begun < 10 and is_whole(tmp_path, units)
    slow = [int(line.split()[1]) for line in log.read_text().splitlines() if "slow" in line]
    assert len(slow) == len(set(slow)) == 2
    there = client.nthreads()
    os.kill(slow[0], signal.SIGKILL)  # which still sleeps
    while client.nthreads() == there:
        time.sleep(0.05)


def test_a_full_disk_on_one_worker_costs_nothing(do, tmp_path, client, pids, caplog, sent):
    full = next(iter(pids))
    units = [unit(f"f{i}", lines=1000, sleep=0.02) for i in range(12)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    client.run(resource.setrlimit, resource.RLIMIT_FSIZE, (1000, before[1]), workers=[full])
    try:
        said = do(*units)
    finally:
        client.run(resource.setrlimit, resource.RLIMIT_FSIZE, before, workers=[full])
    assert is_whole(tmp_path, units)
    assert {about["pid"] for about in said.values()} == set(pids.values()) - {pids[full]}
    assert f"{full} (process {pids[full]} of " in caplog.text
    assert "is not used: 2 units in a row failed there" in caplog.text


@pytest.mark.parametrize("fault, why", [
    ("other", "is not used: version is 2, not 1"),
    ("broken", "is not used: weights.safetensors: ends early. Fetch the file again")])
def test_a_worker_that_is_another_is_named_and_not_used(do, tmp_path, pids, caplog, fault, why):
    address, pid = next(iter(pids.items()))
    said = do(*TEN, **{fault: pid})
    assert is_whole(tmp_path, TEN)
    assert {about["pid"] for about in said.values()} == set(pids.values()) - {pid}
    assert f"{address}" in caplog.text and why in caplog.text


def test_a_worker_without_refsd_is_named(do, monkeypatch, caplog):
    monkeypatch.setattr(dispatch.worker, "greet", farm_samples.Absent())
    with pytest.raises(ResourceError, match="no worker that can be used: 10 of 10"):
        do(*TEN, patience=1.0)
    assert caplog.text.count("No module named 'not_installed_here'") == 2


def test_processes_of_this_machine_that_are_all_set_aside_are_not_waited_for(
        tmp_path, monkeypatch, two):
    monkeypatch.setattr(cluster, "LOCAL", re.compile(".*"))
    monkeypatch.setattr(cluster, "connected", lambda _: distributed.Client(two))
    monkeypatch.setattr(dispatch.worker, "greet", farm_samples.Absent())
    begun = time.monotonic()
    with pytest.raises(ResourceError, match="no worker that can be used: 10 of 10"):
        cluster.run(job(*TEN), "local:2", tmp_path, print)
    assert time.monotonic() - begun < 10


def test_a_worker_that_has_become_another_gives_its_unit_back(do, tmp_path, pids, monkeypatch):
    """It has restarted, at the address at which it was greeted."""
    monkeypatch.setattr(dispatch.worker, "greet", farm_samples.greeted)
    pid = next(iter(pids.values()))
    said = do(*TEN, other=pid)
    assert is_whole(tmp_path, TEN)
    assert {about["pid"] for about in said.values()} == set(pids.values()) - {pid}


def test_a_result_that_is_not_what_was_sent_is_made_again(do, tmp_path, monkeypatch, caplog, sent):
    monkeypatch.setattr(dispatch.worker, "do", farm_samples.altered_once)
    do(*TEN)
    (tmp_path / "altered").unlink()
    assert is_whole(tmp_path, TEN)
    assert caplog.text.count(".txt did not arrive as it was sent") == 1


@pytest.mark.parametrize("over, why", [("a shared folder", "bad.txt was not made"),
                                       ("the network", "bad.txt: No such file or directory")])
def test_a_result_that_was_not_made_is_made_elsewhere(do, tmp_path, caplog, over, why, request):
    if over == "the network":
        request.getfixturevalue("sent")
    once = tmp_path.parent / f"{tmp_path.name}-once"
    units = [unit("bad", cost=9, forgets=True, once=str(once)), *TEN]
    do(*units)
    assert is_whole(tmp_path, units) and why in caplog.text


@pytest.mark.parametrize("kind, error", [("usage", UsageError), ("model", ModelError)])
def test_a_unit_that_is_refused_is_not_tried_again(do, tmp_path, kind, error):
    log = tmp_path.parent / f"{tmp_path.name}-log"
    with pytest.raises(error, match=r"^bad, at worker .*: bad is not to be. Give another$"):
        do(*TEN[1:3], unit("bad", cost=0, sleep=0.3, raises=kind), log=str(log))
    assert log.read_text().count("bad") == 1
    assert is_whole(tmp_path, TEN[1:3])


@pytest.mark.parametrize("kind, why", [
    ("resource", "bad is not to be. Give another"),
    ("fault", r"KeyError: 'bad is not to be. Give another' \(farm_samples.py:\d+\)")])
def test_a_unit_that_fails_everywhere_is_missing_at_the_end(do, tmp_path, kind, why, caplog):
    log = tmp_path.parent / f"{tmp_path.name}-log"
    with pytest.raises(ResourceError, match=f"1 of 11 could not be done: bad: worker .*: {why}"):
        do(*TEN, unit("bad", cost=100, raises=kind), log=str(log))
    tried = [line.split()[1] for line in log.read_text().splitlines() if "bad" in line]
    assert len(tried) == 3 and len(set(tried)) == 2
    assert is_whole(tmp_path, TEN)


def test_one_that_fails_once_is_done_by_another(do, tmp_path):
    log, once = (tmp_path.parent / f"{tmp_path.name}-{name}" for name in ("log", "once"))
    units = [unit("long", cost=200, sleep=1), unit("bad", cost=100, raises="fault", once=str(once))]
    do(*units, log=str(log))  # the worker that failed has nothing else to do
    assert is_whole(tmp_path, units)
    assert len({line for line in log.read_text().splitlines() if "bad" in line}) == 2


def test_a_run_that_is_stopped_leaves_what_is_done_and_goes_on(two, do, tmp_path):
    def stop(unit, said):
        raise KeyboardInterrupt

    units = [unit("first", cost=2), *(unit(f"s{i}", sleep=1) for i in range(3))]
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        cluster.run(job(*units), two.scheduler_address, tmp_path, stop)
    assert time.monotonic() - begun < 1 and is_whole(tmp_path, units[:1])
    assert do(*units)["first"]["again"] and is_whole(tmp_path, units)


def test_the_callers_disk_is_full(do, tmp_path, sent):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ResourceError, match="large.txt: cannot be written: File too large"):
            do(unit("large", lines=1000, sleep=1), unit("small"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_whole(tmp_path, [unit("small")])


def test_there_is_no_scheduler(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT", 0.5)
    with pytest.raises(ResourceError, match="--dask tcp://127.0.0.1:9: no scheduler answers there"):
        cluster.run(job(*TEN), "tcp://127.0.0.1:9", tmp_path, print)
    assert not files(tmp_path)


def test_the_scheduler_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT", 1)
    with (small(1) as one,
          pytest.raises(ResourceError, match="scheduler does not answer any more .*: 9 of 10")):
        cluster.run(job(*[unit(f"s{i}", sleep=0.5) for i in range(10)]), one.scheduler_address,
                    tmp_path, lambda *_: one.close())
    assert len(files(tmp_path)) == 1


def test_a_scheduler_without_workers_is_waited_for(tmp_path):
    with (distributed.LocalCluster(1, processes=False, protocol="tcp", silence_logs=60) as none,
          pytest.raises(ResourceError, match="no worker that can be used: 10 of 10")):
        none.scale(0)
        cluster.run(job(*TEN), none.scheduler_address, tmp_path, print, patience=1.0)


def listened_at():
    """Where this process and its children listen."""
    mine = psutil.Process()
    return {at.laddr for each in [mine, *mine.children(recursive=True)]
            for at in each.net_connections("tcp") if at.status == psutil.CONN_LISTEN}


def test_nobody_else_reaches_processes_of_this_machine():
    """A scheduler runs what it is sent: only here, with a certificate, and nothing over HTTP."""
    others = listened_at()  # the clusters of the tests before
    with cluster.connected("local:1") as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        ports = listened_at() - others
        assert len(ports) >= 3 and {at.ip for at in ports} == {"127.0.0.1"}
        for at in ports:
            with pytest.raises(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{at.port}/health", timeout=5)
        for scheme in ("tls", "tcp"):
            with pytest.raises((OSError, TypeError)):
                distributed.Client(f"{scheme}://{address[6:]}", timeout=2)


@pytest.mark.parametrize("address", ["", "local", "local:0", "local:x", "localhost", "http://a:1",
                                     "tcp://a", "a:b", "tcp://a:1/x", "-1:local"])
def test_an_address_that_is_none(address, tmp_path):
    with pytest.raises(UsageError, match="--dask: got .* give the scheduler's address, as tcp://"):
        cluster.run(job(*TEN), address, tmp_path, print)


def test_dask_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r'pip install "refsd\[distributed\]"'):
        cluster.check_address("local:2")


def test_what_dask_would_say_itself_is_left_out_and_put_back(two):
    handler = logging.NullHandler(logging.INFO)
    logging.getLogger("distributed").addHandler(handler)
    with suppress(KeyError), cluster.connected(two.scheduler_address):
        assert handler.level > logging.CRITICAL
        raise KeyError
    assert handler.level == logging.INFO
    logging.getLogger("distributed").removeHandler(handler)
