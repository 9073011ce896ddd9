"""Tables as a seed draws them."""

import random

from ecrec.protocol.placement import (
    CodeSpec,
    OptimizerSpec,
    TableSpec,
)

WIDE_CODES = ((4, 2), (5, 1), (6, 2), (6, 3), (8, 1), (8, 2), (10, 2), (12, 4), (13, 3))

CODES = ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 2), (2, 3), (3, 3))


def draw_table(rng: random.Random, index: int, code: CodeSpec, rows: int) -> TableSpec:
    dim = rng.randint(1, 4)
    optimizer = rng.choice(
        (
            OptimizerSpec("sgd", (0.125,)),
            OptimizerSpec("adagrad", (0.1, 1e-8)),
            OptimizerSpec("rowwise-adagrad", (0.1, 1e-8)),
        )
    )
    uniform = rng.random() < 0.7
    return TableSpec(
        name=f"t{index}",
        rows=rows,
        dim=dim,
        code=code,
        optimizer=optimizer,
        init="uniform" if uniform else "zeros",
        init_seed=rng.randrange(1 << 31),
        init_scale=0.25 if uniform else 0.0,
        init_state=rng.choice((0.0, 0.5)),
    )


def draw_tables(rng: random.Random, n: int, storm: bool, late_views: bool) -> tuple[TableSpec, ...]:
    codes = [code for code in CODES if sum(code) <= n and (not storm or code[1] > 1)]
    # Parities are solved together where two rows of a stripe are lost; that others of it go on needs a third. And some
    # traps snap only where a third shard dies beside two.
    hard = [code for code in codes if (code[0] > 2 and code[1] > 1) or code[1] > 2]
    k, r = rng.choice(hard if storm and hard and rng.random() < 0.7 else codes)
    if late_views:
        k, r = rng.choice([code for code in codes if code[0] > 2])
    generator = rng.choice(("cauchy", "cauchy", "isal-cauchy"))
    tables = [draw_table(rng, 0, CodeSpec(k, r, generator), rng.randint(max(1, n * k // 2), 4 * n * k))]
    if rng.random() < 0.7 and 1 + r <= n:  # the dense part: replicated
        tables.append(draw_table(rng, len(tables), CodeSpec(1, r, generator), rng.randint(1, 2 * n)))
    if rng.random() < 0.4:
        tables.append(draw_table(rng, len(tables), CodeSpec(k, r, generator), rng.randint(1, 3 * n * k)))
    if rng.random() < 0.2:  # a code of its own, so that classes of several codes live side by side
        k, r = rng.choice([code for code in codes if code[1] >= r])
        tables.append(draw_table(rng, len(tables), CodeSpec(k, r, "cauchy"), rng.randint(1, 3 * n)))
    if rng.random() < 0.5:
        tables = tables[1:] + tables[:1]
    return tuple(tables)


def draw_wide_tables(seed: int, n: int) -> tuple[TableSpec, ...]:
    """Of a group that is larger than most."""
    rng = random.Random(f"wide tables {seed}")
    k, r = rng.choice([code for code in WIDE_CODES if sum(code) <= n])
    tables = [draw_table(rng, 0, CodeSpec(k, r), rng.randint(n * k // 2, 2 * n * k))]
    if rng.random() < 0.7:
        tables.append(draw_table(rng, 1, CodeSpec(1, r), rng.randint(1, 2 * n)))
    return tuple(tables)
