"""What Linux' control groups leave to this process: memory, and processors.

A group's limit holds for all groups below it, so the smallest on the way from this process' group
up to where the hierarchy is mounted counts. There are two kinds of hierarchy, v1 with one for each
controller and v2 with one for all, and a system may have both. Nothing here raises: a file that is
not there, or says something unexpected, sets no limit.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path

UNLIMITED = 1 << 60  # v1 has no word for it, but a number that is nearly 2^63


def free_bytes(root: Path = Path("/")) -> int | None:
    """The memory that the groups' limits leave, files that are only cached not counted; or None.

    `memory.high` counts like `memory.max`: beyond it a process is slowed down to a halt.
    """
    free = []
    for folder in _folders("memory", root):
        limits = [_number(folder / name)
                  for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        used = _number(folder / "memory.current")
        if used is None:
            used = _number(folder / "memory.usage_in_bytes")
        if used is not None:
            cached = re.search(r"^(?:total_)?inactive_file (\d+)$", _statistics(folder), re.M)
            reclaimable = int(cached[1]) if cached else 0
            free += [max(limit - used + reclaimable, 0) for limit in limits
                      if limit is not None and limit < UNLIMITED]
    return min(free, default=None)


def processors(root: Path = Path("/")) -> int | None:
    """The processors that the groups' quotas of time amount to, rounded up; None without any."""
    counts = []
    for folder in _folders("cpu", root):
        quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
        if not quota:
            quota = _text(folder / "cpu.cfs_quota_us").strip()
            period = _text(folder / "cpu.cfs_period_us").strip()
        if _is_count(quota) and _is_count(period) and int(quota) > 0 and int(period) > 0:
            counts.append(math.ceil(int(quota) / int(period)))
    return min(counts, default=None)


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """This process' group of each hierarchy with the controller, and those above it."""
    own = _own_groups(controller, root)
    mounts = list(_mounts(controller, root))
    if not mounts:  # no mountinfo: where everybody has them
        base = root / "sys/fs/cgroup"
        mounts = [("v2", "/", base), ("v1", "/", base / controller)]
    for kind, begin, mounted in mounts:
        path = own.get(kind, "/")
        # A container may see a group of the host as the root of the hierarchy.
        inside = path[len(begin):] if (path + "/").startswith(begin.rstrip("/") + "/") else ""
        parts = [part for part in inside.split("/") if part not in ("", ".", "..")]
        for length in range(len(parts), -1, -1):
            folder = mounted.joinpath(*parts[:length])
            if length < len(parts) and _text(folder / "memory.use_hierarchy").strip() == "0":
                break  # v1's groups may be limited each for itself
            yield folder


def _own_groups(controller: str, root: Path) -> dict[str, str]:
    """The path of this process' group in each kind of hierarchy."""
    groups = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, entry = line.partition(":")
        controllers, colon, path = entry.partition(":")
        if number == "0" and not controllers and colon:
            groups["v2"] = path
        elif controller in controllers.split(","):
            groups["v1"] = path
    return groups


def _mounts(controller: str, root: Path) -> Iterator[tuple[str, str, Path]]:
    """Each hierarchy's kind, the group that is its root here, and where it is mounted."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        where, dash, what = line.partition(" - ")
        fields, kinds = where.split(), what.split()
        if not dash or len(fields) < 5 or len(kinds) < 3:
            continue
        begin, mounted = (_unescape(field) for field in fields[3:5])
        if kinds[0] == "cgroup2":
            yield "v2", begin, root / mounted.lstrip("/")
        elif kinds[0] == "cgroup" and controller in kinds[2].split(","):
            yield "v1", begin, root / mounted.lstrip("/")


def _unescape(field: str) -> str:
    """mountinfo writes blanks as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _statistics(folder: Path) -> str:
    text = _text(folder / "memory.stat")
    # v1 has a group's own numbers, and under total_ those with the groups below.
    return re.sub(r"^inactive_file", "own", text, flags=re.M) if "total_" in text else text


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if _is_count(text) else None


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (OSError, ValueError):
        return ""
