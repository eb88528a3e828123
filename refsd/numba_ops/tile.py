"""The micro-kernel under every dense op: an MR x NR tile of a matrix product, summed in registers.

MR is ROWS and NR is VECTORS vectors, in BLIS's words (Van Zee and van de Geijn 2015). The right
matrix is packed in panels: (k, NR), one after the other.
"""

import refsd.numba_ops.settings  # noqa: F401  before Numba

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from refsd.numba_ops.levels import level_of
from refsd.numba_ops.simd import WIDTH, prefetch_line
from refsd.numba_ops.vector import Elements

# 14 x 2 sums, two columns and one row value fill the 32 registers of AVX-512; 6 x 2 those of AVX2.
ROWS, VECTORS = (14, 2) if WIDTH == 64 else (6, 2)
# The fewest of a tile whose rows can be chosen: each number is code of its own to compile.
LEAST_ROWS = 3 * ROWS // 4
# The most rows that are multiplied otherwise (cpu/few.py): their sums stay in registers too.
FEW = 4
# Rows of a tile whose left matrix is transposed: they divide the head widths 40, 80 and 160.
TRANSPOSED_ROWS = 10 if WIDTH == 64 else 5


@intrinsic
def tile(typing, a, at, step, segments, length, panel, panel_at, c):
    """c[i, :] = sum_{s, k} a[at + i step + segments[s] + k] panel[panel_at + (s length + k) NR + :]

    a: the left matrix's memory, 1-D; its ROWS rows lie `step` elements apart, and each is made of
    segments of `length` elements (a linear layer has one, a convolution one for each row of taps).
    panel: NR = VECTORS vectors of the right matrix for each k, packed one after the other.
    c: 1-D, ROWS x NR, overwritten. Each sum is one chain in an order that k alone decides, made as
    the level of their dtypes does (levels.py): its bits depend on its own row and column only.
    """
    kinds = [a, types.intp, types.intp, segments, types.intp, panel, types.intp, c]
    return _tile("a at step segments length panel panel_at out", kinds)


@intrinsic
def tile_once(typing, a, at, step, length, panel, c):
    """As tile, with one segment that begins at a[at] and a panel that begins at panel[0]."""
    kinds = [a, types.intp, types.intp, types.intp, panel, c]
    return _tile("a at step length panel out", kinds)


def rows_of_tiles(count):
    """The rows of each of the fewest tiles that share `count` rows evenly, for tile_ahead."""
    return max(LEAST_ROWS, -(-count // -(-count // ROWS)))


@intrinsic
def tile_ahead(typing, rows, a, at, step, segments, length, panel, panel_at, panel_step, c, onto,
               next_a, next_panel, pace):
    """As tile, of LEAST_ROWS to ROWS rows, and meanwhile prefetch what comes next.

    Rows of the panel are panel_step apart. With `onto` c += the sums: a long k in blocks, added up,
    has a fraction of the rounding error of one chain. After k steps k ROWS elements from a[next_a]
    on have been prefetched, and k pace elements of the panel whose first row begins at
    panel[next_panel].
    """
    kinds = [types.intp, a, types.intp, types.intp, segments, types.intp, panel, types.intp,
             types.intp, c, *[types.intp] * 4]
    return _tile("rows a at step segments length panel panel_at panel_step out onto next_a "
                 "next_panel pace", kinds)


@intrinsic
def tile_onto(typing, a, at, step, length, panel, panel_at, panel_step, before, before_at,
              before_step, c, next_a, next_panel, pace):
    """As tile_ahead with one segment, but onto what is anywhere:

    c[i, :] = before[before_at + i before_step + :]
              + sum_k a[at + i step + k] panel[panel_at + k panel_step + :]
    """
    kinds = [a, types.intp, types.intp, types.intp, panel, types.intp, types.intp, before,
             types.intp, types.intp, c, *[types.intp] * 3]
    return _tile("a at step length panel panel_at panel_step before before_at before_step out "
                 "next_a next_panel pace", kinds)


@intrinsic
def tile_transposed_a(typing, a, at, step, length, panel, c):
    """c[i, :] += sum_k a[at + i + k step] panel[k NR + :] for TRANSPOSED_ROWS rows i

    As tile, but of a left matrix that lies in memory transposed. Of bfloat16 it takes pairs only.
    """
    kinds = [a, types.intp, types.intp, types.intp, panel, c]
    return _tile("a at transposed_step length panel before", kinds, TRANSPOSED_ROWS)


@intrinsic
def chain(typing, rows, a, at, step, length, panel, panel_step, chains, chains_at):
    """Go on with the chains of 1, 2 or FEW rows by `length` products, from a[at + i step] on.

    chains (rows, NR) are those of an unfinished tile: their lanes lie as the level has them.
    """
    kinds = [types.intp, a, types.intp, types.intp, types.intp, panel, types.intp, chains,
             types.intp]
    level = level_of(a.dtype, panel.dtype)
    memory = Elements(chains.dtype, level.vector.count)

    def emit(context, builder, signature, arguments):
        names = ("rows", "a", "at", "step", "length", "panel", "panel_step", "out", "out_at")
        p = _parameters(context, builder, names, signature.args, arguments)
        for some in (1, 2, FEW):
            with builder.if_then(builder.icmp_signed("==", p["rows"],
                                                     ir.Constant(p["rows"].type, some))):
                _go_on(builder, level, memory, p, some)
        return context.get_dummy_value()

    return types.void(*kinds), emit


def _go_on(builder, level, memory, p, rows):
    number, places, sums = p["at"].type, [], []
    for i in range(rows * VECTORS):
        row = _row(builder, p, "out", i // VECTORS, VECTORS * level.vector.count)
        places.append(memory.beside(builder, row, i % VECTORS))
        sums.append(cgutils.alloca_once_value(builder, memory.load(builder, places[-1])))
    starts = [builder.mul(p["step"], ir.Constant(number, i)) for i in range(rows)]
    p = p | {"panel_at": ir.Constant(number, 0)}
    _add_products(builder, level, sums, p, builder.gep(p["a"], [p["at"]]), None, starts)
    for place, total in zip(places, sums):
        memory.store(builder, builder.load(total), place)


@intrinsic
def add_chain(typing, a, panel, chains, chains_at, sums, sums_at):
    """sums[sums_at :] += one row of chains, as `chain` makes them of a and panel"""
    level = level_of(a.dtype, panel.dtype)
    memory = Elements(chains.dtype, level.vector.count)

    def emit(context, builder, signature, arguments):
        names = ("a", "panel", "chains", "chains_at", "sums", "sums_at")
        p = _parameters(context, builder, names, signature.args, arguments)
        one, total = (builder.gep(p[name], [p[name + "_at"]]) for name in ("chains", "sums"))
        row = level.sums(builder, [memory.load(builder, memory.beside(builder, one, j))
                                   for j in range(VECTORS)])
        for j, value in enumerate(row):
            place = memory.beside(builder, total, j)
            memory.store(builder, builder.fadd(memory.load(builder, place), value), place)
        return context.get_dummy_value()

    return types.void(a, panel, chains, types.intp, sums, types.intp), emit


def _parameters(context, builder, names, kinds, arguments):
    """The values of parameters by name, of arrays the address of their memory."""
    return {name: context.make_array(kind)(context, builder, value).data
            if isinstance(kind, types.Array) else value
            for name, kind, value in zip(names, kinds, arguments)}


def _tile(names, kinds, rows=ROWS):
    """The code of a tile of `rows` with the parameters `names`, whose types are `kinds`."""
    names = names.split()
    dtypes = {name: kind.dtype for name, kind in zip(names, kinds) if hasattr(kind, "dtype")}
    level = level_of(dtypes["a"], dtypes["panel"])
    count = level.vector.count
    memory = {name: Elements(dtypes[name], count) for name in dtypes.keys() & {"out", "before"}}
    memory.setdefault("out", memory.get("before"))

    def emit(context, builder, signature, arguments):
        p = _parameters(context, builder, names, signature.args, arguments)
        number = p["at"].type
        p.setdefault("out", p.get("before"))
        p.setdefault("panel_at", ir.Constant(number, 0))
        p.setdefault("panel_step", ir.Constant(number, VECTORS * count))
        if "segments" in p:
            at = names.index("segments")
            segments = context.make_array(kinds[at])(context, builder, arguments[at])
            p["segment_count"] = builder.extract_value(segments.shape, 0)
        if "rows" not in p:
            _emit_rows(builder, level, memory, p, rows)
            return context.get_dummy_value()
        for some in range(LEAST_ROWS, ROWS + 1):
            with builder.if_then(builder.icmp_signed("==", p["rows"], ir.Constant(number, some))):
                _emit_rows(builder, level, memory, p, some)
        return context.get_dummy_value()

    return types.void(*kinds), emit


def _emit_rows(builder, level, memory, p, rows):
    """The same for the parameters' values p."""
    number, width = p["at"].type, VECTORS * level.vector.count
    # LLVM keeps these in registers: nothing ever takes their address.
    sums = [cgutils.alloca_once_value(builder, ir.Constant(level.vector.llvm, None))
            for _ in range(rows * VECTORS)]
    row_starts = [builder.mul(p.get("step", ir.Constant(number, 1)), ir.Constant(number, i))
                  for i in range(rows)]

    if "segments" in p:
        with cgutils.for_range(builder, p["segment_count"]) as segment:
            offset = builder.load(builder.gep(p["segments"], [segment.index]))
            left_at = builder.gep(p["a"], [builder.add(p["at"], offset)])
            done = builder.mul(segment.index, p["length"])
            _add_products(builder, level, sums, p, left_at, done, row_starts)
    else:
        left_at = builder.gep(p["a"], [p["at"]])
        _add_products(builder, level, sums, p, left_at, None, row_starts)

    for i in range(rows):
        row = level.sums(builder, list(map(builder.load, sums[i * VECTORS:][:VECTORS])))
        for total, value in zip(sums[i * VECTORS:], row):
            builder.store(value, total)
    if "onto" in p:
        with builder.if_then(builder.icmp_signed("!=", p["onto"], ir.Constant(number, 0))):
            _add(builder, memory["out"], sums, p, "out", width)
    if "before" in p:
        _add(builder, memory["before"], sums, p, "before", width)
    for i, total in enumerate(sums):
        row = _row(builder, p, "out", i // VECTORS, width)
        memory["out"].store(builder, builder.load(total),
                            memory["out"].beside(builder, row, i % VECTORS))


def _add_products(builder, level, sums, p, left_at, done, row_starts):
    """Add `length` products from left_at on to the sums; `done` of the panel's rows were before."""
    right_from = builder.gep(p["panel"], [p["panel_at"]])

    def step(k, **last):
        row = builder.add(done, k) if done else k
        right_at = builder.gep(right_from, [builder.mul(row, p["panel_step"])])
        right = level.right(builder, right_at, p["panel_step"], VECTORS, **last)
        if "pace" in p:
            _prefetch(builder, row, p, VECTORS * level.vector.count)
        here = builder.gep(left_at, [builder.mul(k, p["transposed_step"])
                                     if "transposed_step" in p else k])
        for i, start in enumerate(row_starts):
            left = level.left(builder, builder.gep(here, [start]), **last)
            for total, value in zip(sums[i * VECTORS:], right):
                builder.store(level.add(builder, left, value, builder.load(total)), total)

    depth = ir.Constant(p["length"].type, level.depth)
    with cgutils.for_range(builder, builder.udiv(p["length"], depth)) as loop:
        step(builder.mul(loop.index, depth))
    if level.depth > 1:
        odd = builder.and_(p["length"], ir.Constant(depth.type, 1))
        with builder.if_then(builder.trunc(odd, ir.IntType(1)), likely=False):
            step(builder.sub(p["length"], odd), last=True)


def _add(builder, elements, sums, p, name, width):
    """Add what the array `name` holds to the sums."""
    for i, total in enumerate(sums):
        row = _row(builder, p, name, i // VECTORS, width)
        old = elements.load(builder, elements.beside(builder, row, i % VECTORS))
        builder.store(builder.fadd(old, builder.load(total)), total)


def _row(builder, p, name, i, width):
    """The address of row i of the tile in the array `name`."""
    number = p["at"].type
    at = builder.mul(p.get(name + "_step", ir.Constant(number, width)), ir.Constant(number, i))
    return builder.gep(p[name], [builder.add(at, p.get(name + "_at", ir.Constant(number, 0)))])


def _prefetch(builder, k, p, width):
    """Prefetch element k ROWS from a[next_a] on, and element k pace from the next panel's first."""
    done = builder.mul(k, p["pace"])
    row, column = (divide(done, ir.Constant(k.type, width))
                   for divide in (builder.udiv, builder.urem))  # width is a power of 2
    for data, start, further in (
            (p["a"], p["next_a"], builder.mul(k, ir.Constant(k.type, ROWS))),
            (p["panel"], p["next_panel"], builder.add(builder.mul(row, p["panel_step"]), column))):
        prefetch_line(builder, builder.gep(data, [builder.add(start, further)]), level=2)
