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
