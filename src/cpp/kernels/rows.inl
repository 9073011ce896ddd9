// Moving rows that may lie anywhere: folds and copies that prefetch the rows to come. A part of loops.inl.

// One row of `blocks` whole blocks, four at a time: all are loaded before the first is stored, so that misses overlap.
template <int blocks, class Multiply>
[[gnu::always_inline]] inline void fold_blocks(const Multiply& multiply, const std::uint8_t* source,
                                               std::uint8_t* target) {
    const Whole whole;
    constexpr int width = blocks < 4 ? blocks : 4;
    static_assert(blocks % width == 0);
    for (int first = 0; first < blocks; first += width) {
        Bytes next[width];
        for (int w = 0; w < width; ++w) {
            const std::size_t i = static_cast<std::size_t>(first + w) * block;
            next[w] = whole.load(target + i) ^ multiply(whole.load(source + i));
        }
        for (int w = 0; w < width; ++w) whole.store(target + static_cast<std::size_t>(first + w) * block, next[w]);
    }
}

// On the way to the second-level cache. Rows that are only read, and short ones in steps: many. Long ones that are
// written, too, take a fifth longer from 16 on, however long they are, and 4 to 14 are the same; folds of short ones
// are the same with any (measured: bench/LIMITS.md, "A fourth machine").
constexpr std::size_t few_far_rows = 12, many_far_rows = 64;

// Rows that may lie anywhere, asked for before their turn: of each the lines of its first `asked` bytes; what follows
// is in order, and the CPU fetches it by itself. near_bytes: what is on its way to the first-level cache at a time;
// far_rows: so many are asked for ahead where they go to the second.
template <bool writes>
struct RowsAhead {
    RowsAhead(std::size_t bytes, std::size_t near_bytes, std::size_t far_rows)
        : far(prefetch_into == PrefetchInto::second_level), asked(bytes < asked_max ? bytes : asked_max) {
        const std::size_t near_rows = bytes >= near_bytes / 8 ? 8 : near_bytes / (bytes < 256 ? 256 : bytes);
        rows = far ? far_rows : near_rows;
    }

    void ask_for(const void* row) const {
        // The last byte is asked for whether its line was or not: how many lines a row touches that starts anywhere in
        // one, no CPU can predict.
        ask_for_next(row, 0);
        ask(reinterpret_cast<std::uintptr_t>(row) + asked - 1);
    }

    // Of rows that follow each other the one `distance` bytes on: the line of its last byte is the next row's to ask
    // for. They may end before it; a prefetch beyond does not fault.
    void ask_for_next(const void* row, std::size_t distance) const {
        const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(row) + distance;
        for (std::size_t i = 0; i < asked; i += 64) ask(first + i);
    }

    void ask(std::uintptr_t address) const {
        const void* at = reinterpret_cast<const void*>(address);
        if (far) {
            __builtin_prefetch(at, 0, 2);
        } else {
            __builtin_prefetch(at, writes);
        }
    }

    static constexpr std::size_t asked_max = 2048;
    bool far;
    std::size_t asked;
    std::size_t rows;  // so many ahead
};

template <class Fold>
[[gnu::always_inline]] inline void for_rows(std::size_t rows, std::size_t bytes, const std::uint8_t* const* source,
                                            std::uint8_t* const* target, Fold fold) {
    const RowsAhead<true> targets(bytes, 8192, few_far_rows);
    const RowsAhead<false> sources(bytes, 8192, few_far_rows);
    // With longer rows the source, too, outruns what the CPU fetches by itself.
    const bool asks_for_sources = sources.far || bytes >= 512;
    const std::size_t ahead = targets.rows;
    for (std::size_t m = 0; m < rows; ++m) {
        if (m + ahead < rows) {
            targets.ask_for(target[m + ahead]);
            if (asks_for_sources) sources.ask_for(source[m + ahead]);
        }
        fold(source[m], target[m]);
    }
}

void fold_rows(std::size_t rows, std::size_t bytes, const Coefficient& c, const std::uint8_t* const* source,
               std::uint8_t* const* target) {
    using Source = const std::uint8_t*;
    using Target = std::uint8_t*;
    const auto fold_all = [&](auto fold)
                              __attribute__((always_inline)) { for_rows(rows, bytes, source, target, fold); };
    with_product(c, [&](auto multiply) __attribute__((always_inline)) {
        // The lengths of records whose floats are a power of two, without a tail.
        if (bytes == 4 * block) {
            fold_all([&](Source x, Target y) __attribute__((always_inline)) { fold_blocks<4>(multiply, x, y); });
        } else if (bytes == 8 * block) {
            fold_all([&](Source x, Target y) __attribute__((always_inline)) { fold_blocks<8>(multiply, x, y); });
        } else if (bytes == 16 * block) {
            fold_all([&](Source x, Target y) __attribute__((always_inline)) { fold_blocks<16>(multiply, x, y); });
        } else {
            fold_all([&](Source x, Target y) __attribute__((always_inline)) { fold_by(multiply, bytes, x, y); });
        }
    });
}

template <int blocks>
[[gnu::always_inline]] inline void copy_blocks(const std::uint8_t* from, std::uint8_t* to) {
    const Whole whole;
    for (int w = 0; w < blocks; ++w) whole.store(to + w * block, whole.load(from + w * block));
}

void copy_rows(std::size_t rows, std::size_t bytes, const std::uint8_t* const* source, std::uint8_t* target,
               std::size_t later, bool continues) {
    using From = const std::uint8_t*;
    using To = std::uint8_t*;
    const auto copy_all = [&](std::size_t size, auto copy) __attribute__((always_inline)) {
        const RowsAhead<false> sources(size, 12288, many_far_rows);
        const std::size_t ahead = sources.rows, known = rows + later;
        // With shorter rows the CPU's own prefetching of the target keeps up.
        const bool asks_for_target = sources.far && size > 256;
        const auto prefetch = [&](std::size_t m) __attribute__((always_inline)) {
            if (m < known && source[m] != nullptr) sources.ask_for(source[m]);
        };
        for (std::size_t m = 0; !continues && m < ahead; ++m) prefetch(m);
        for (std::size_t m = 0; m < rows; ++m) {
            prefetch(m + ahead);
            if (asks_for_target) sources.ask_for_next(target + m * size, ahead * size);
            if (source[m] != nullptr) copy(source[m], target + m * size);
        }
    };
    // The lengths of weights whose floats are a power of two, as constants.
    if (bytes == 4 * block) {
        copy_all(4 * block, [](From from, To to) __attribute__((always_inline)) { copy_blocks<4>(from, to); });
    } else if (bytes == 8 * block) {
        copy_all(8 * block, [](From from, To to) __attribute__((always_inline)) { copy_blocks<8>(from, to); });
    } else if (bytes == 16 * block) {
        copy_all(16 * block, [](From from, To to) __attribute__((always_inline)) { copy_blocks<16>(from, to); });
    } else {
        copy_all(bytes, [&](From from, To to) __attribute__((always_inline)) {
            write_blocks(bytes, to, [&](auto access, std::size_t i) __attribute__((always_inline)) {
                return access.load(from + i);
            });
        });
    }
}
