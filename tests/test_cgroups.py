"""Limits of control groups and of ulimit, in file systems made up from what systems really have."""

import resource

import pytest

from refsd import cgroups, parallel
from refsd.cli import threads as cli_threads
from refsd.numba_ops import threads
from refsd.weights import memory

MEMINFO = {"proc/meminfo": "MemTotal: 100000 kB\nMemAvailable:   64000 kB\n"}
V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = ("32 31 0:29 {0} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
      "35 31 0:32 {0} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n")
UNIFIED = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
NO_LIMIT = "9223372036854771712\n"


def system(root, cgroup="", mountinfo="", **folders):
    """A root folder; folders by name ("a/b"), with their files by name."""
    texts = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo}
    texts |= {f"sys/fs/cgroup/{folder}/{name}": text
              for folder, files in folders.items() for name, text in files.items()}
    for path, text in (MEMINFO | texts).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def v2(limit, used=30_000, high="max", cached=5_000, **more):
    return {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.high": f"{high}\n",
            "memory.stat": f"anon 1\ninactive_file {cached}\nactive_file 9\n", **more}


def v1(limit, used=30_000, cached=5_000, **more):
    return {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": f"{used}\n",
            "memory.stat": f"inactive_file 1\ntotal_inactive_file {cached}\n", **more}


# The process' groups, the mounts, the files; what is left by the groups' limits.
MEMORY = {
    "v2, at the root, as in most containers": ("0::/\n", V2, {"": v2(50_000)}, 25_000),
    "v2, its own group": ("0::/a/b\n", V2, {"a/b": v2(50_000), "a": v2("max")}, 25_000),
    "v2, the group above": ("0::/a/b\n", V2, {"a/b": v2("max"), "a": v2(40_000)}, 15_000),
    "v2, the smaller of two": ("0::/a/b\n", V2, {"a/b": v2(90_000), "a": v2(50_000)}, 25_000),
    "v2, a group beside": ("0::/a/b\n", V2, {"a/c": v2(1)}, None),
    "v2, high": ("0::/a\n", V2, {"a": v2(90_000, high=50_000)}, 25_000),
    "v2, used up": ("0::/a\n", V2, {"a": v2(10_000)}, 0),
    "v2, no limit": ("0::/a\n", V2, {"a": v2("max")}, None),
    "v2, no statistics": ("0::/a\n", V2, {"a": v2(50_000, **{"memory.stat": ""})}, 20_000),
    "v2, a blank in the path": ("0::/my app\n", V2, {"my app": v2(50_000)}, 25_000),
    "v2, the host's path": ("0::/docker/1\n", V2.replace(" / ", " /docker/1 "),
                            {"": v2(50_000)}, 25_000),
    "v2, a path that is not there": ("0::/docker/1\n", V2, {"": v2(50_000)}, 25_000),
    "v2, outside of the namespace": ("0::/../x\n", V2, {"": v2(50_000)}, 25_000),
    "v2, mounted elsewhere": ("0::/\n", V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/x\\040y "),
                              {"x y": v2(50_000)}, 25_000),
    "v1, at the root": ("4:memory:/\n1:cpu:/\n", V1.format("/"), {"memory": v1(50_000)}, 25_000),
    "v1, its own group": ("4:memory:/a/b\n", V1.format("/"),
                          {"memory/a/b": v1(50_000), "memory": v1(NO_LIMIT)}, 25_000),
    "v1, the group above": ("4:memory:/a/b\n", V1.format("/"),
                            {"memory/a/b": v1(NO_LIMIT), "memory/a": v1(50_000)}, 25_000),
    "v1, the group above does not count": (
        "4:memory:/a/b\n", V1.format("/"),
        {"memory/a/b": v1(90_000),
         "memory/a": v1(50_000, **{"memory.use_hierarchy": "0\n"})}, 65_000),
    "v1, docker": ("4:memory:/docker/1\n", V1.format("/docker/1"),
                   {"memory": v1(50_000)}, 25_000),
    "v1, no limit": ("4:memory:/\n", V1.format("/"), {"memory": v1(NO_LIMIT)}, None),
    "v1, several controllers": ("4:hugetlb,memory:/a\n", V1.format("/"),
                                {"memory/a": v1(50_000)}, 25_000),
    "hybrid": ("4:memory:/a\n0::/b\n", V1.format("/") + UNIFIED,
               {"memory/a": v1(50_000), "unified/b": {"cgroup.procs": "1\n"}}, 25_000),
    "no mountinfo, v2": ("0::/a\n", "", {"a": v2(50_000)}, 25_000),
    "no mountinfo, v1": ("4:memory:/a\n", "", {"memory/a": v1(50_000)}, 25_000),
    "nothing but the files": ("", "", {"": v2(50_000)}, 25_000),
    "nothing at all": ("", "", {}, None),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_that_groups_leave(tmp_path, name):
    cgroup, mountinfo, folders, left = MEMORY[name]
    root = system(tmp_path, cgroup, mountinfo, **folders)
    assert cgroups.free_bytes(root) == left
    # No limit of the test's own process is smaller than that.
    assert memory.available_bytes(root) == (64_000 * 1024 if left is None else left)


CPU = {
    "v2": ("0::/\n", V2, {"": {"cpu.max": "150000 100000\n"}}, 2),
    "v2, no limit": ("0::/\n", V2, {"": {"cpu.max": "max 100000\n"}}, None),
    "v2, half a processor": ("0::/a\n", V2, {"a": {"cpu.max": "50000 100000\n"}}, 1),
    "v2, the group above": ("0::/a/b\n", V2, {"a/b": {"cpu.max": "400000 100000\n"},
                                              "a": {"cpu.max": "300000 100000\n"}}, 3),
    "v1": ("2:cpu,cpuacct:/a\n", V1.format("/"), {"cpu,cpuacct/a": {
        "cpu.cfs_quota_us": "200000\n", "cpu.cfs_period_us": "100000\n"}}, 2),
    "v1, no limit": ("2:cpu,cpuacct:/a\n", V1.format("/"), {"cpu,cpuacct/a": {
        "cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}}, None),
    "v1, docker": ("2:cpu,cpuacct:/docker/1\n", V1.format("/docker/1"), {"cpu,cpuacct": {
        "cpu.cfs_quota_us": "50000\n", "cpu.cfs_period_us": "10000\n"}}, 5),
    "no period": ("0::/\n", V2, {"": {"cpu.max": "150000\n"}}, None),
    "a period of 0": ("0::/\n", V2, {"": {"cpu.max": "150000 0\n"}}, None),
    "nothing": ("", "", {}, None),
}


@pytest.mark.parametrize("name", CPU)
def test_processors_that_groups_give_time_for(tmp_path, name):
    cgroup, mountinfo, folders, count = CPU[name]
    assert cgroups.processors(system(tmp_path, cgroup, mountinfo, **folders)) == count


@pytest.mark.parametrize("text", [
    "", "\n", "-1", "x", "1 2 3", "9" * 5000, b"\xff\xfe", b"\0" * 100, "²", "٣", ":::", "0::",
    "- - -", " - cgroup2", "1 2 3 / /sys - cgroup2 x rw", "4:memory",
    "1 2 3 / \\999 - cgroup2 x rw",
], ids=lambda text: repr(text[:20]))
def test_files_that_say_something_unexpected_set_no_limit(tmp_path, text):
    names = ("memory.max", "memory.high", "memory.current", "memory.limit_in_bytes",
             "memory.usage_in_bytes", "memory.stat", "cpu.max", "cpu.cfs_quota_us",
             "cpu.cfs_period_us", "memory.use_hierarchy")
    files = dict.fromkeys(names, text)
    for cgroup, mountinfo in (("0::/\n", V2), (text, text), (text, V2), ("0::/\n", text)):
        root = system(tmp_path, cgroup, mountinfo, **{"": files})
        assert cgroups.free_bytes(root) is None and cgroups.processors(root) is None
    (tmp_path / "proc/meminfo").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert memory.available_bytes(root) is None


def test_what_ulimit_allows(tmp_path, monkeypatch):
    """Of either kind, less what is in use; address space that is only reserved may be used yet."""
    root = system(tmp_path)
    (root / "proc/self/status").write_text("VmSize:\t 900 kB\nVmRSS:\t  100 kB\n")
    limits = {resource.RLIMIT_AS: 1_000_000, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], -1))
    assert memory.available_bytes(root) == 1_000_000 - 100 * 1024
    limits[resource.RLIMIT_DATA] = 500_000
    assert memory.available_bytes(root) == 500_000 - 100 * 1024
    limits[resource.RLIMIT_DATA] = 0
    assert memory.available_bytes(root) == 0


def test_this_system_is_read():
    assert memory.available_bytes() > 0


def test_the_command_line_takes_no_more_threads_than_there_is_time_for(monkeypatch):
    monkeypatch.setattr(cgroups, "processors", lambda: 1)
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    with cli_threads.limited(None):
        assert (threads.count(), cli_threads.in_use()) == (1, 1)
    before = threads.count()
    with cli_threads.limited(before):  # what is asked for is done
        assert threads.count() == before
    monkeypatch.setattr(cgroups, "processors", lambda: 2)
    assert parallel.quota() is None


def test_numba_starts_no_more_threads_than_there_is_time_for(monkeypatch):
    """It reads the variable when it is imported, and whenever it has changed: so it stays."""
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(parallel, "quota", lambda: 3)
    monkeypatch.setattr(parallel, "sys", type("Other", (), {"modules": {}}))
    environment = {}
    monkeypatch.setattr(parallel.os, "environ", environment)
    parallel.check_environment()
    assert environment == {"NUMBA_NUM_THREADS": "3"}
    environment["NUMBA_NUM_THREADS"] = "7"
    parallel.check_environment()
    assert environment == {"NUMBA_NUM_THREADS": "7"}
    monkeypatch.setattr(parallel, "quota", lambda: None)
    environment.clear()
    parallel.check_environment()
    assert environment == {}
