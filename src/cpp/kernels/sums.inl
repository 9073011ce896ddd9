// Sums of rows of floats: pooling, and gradients of one row added up. A part of loops.inl.

// Blocks at..at + width of one bag's sum, in registers.
template <int width, class Access>
[[gnu::always_inline]] inline void pool_blocks(Access access, std::size_t at, std::size_t rows,
                                               const float* const* source, float* target) {
    Floats sum[width];
    for (int w = 0; w < width; ++w) sum[w] = load_floats(access, source[0] + at + w * lanes);
    for (std::size_t j = 1; j < rows; ++j) {
        for (int w = 0; w < width; ++w) sum[w] += load_floats(access, source[j] + at + w * lanes);
    }
    for (int w = 0; w < width; ++w) store_floats(access, target + at + w * lanes, sum[w]);
}

void pool_rows(std::size_t bags, std::size_t dim, const float* const* source, const std::size_t* ends,
               float* const* target) {
    constexpr std::size_t ahead = 24;
    const std::size_t prefetched = dim < 256 ? dim : 256;
    const std::size_t all = bags == 0 ? 0 : ends[bags - 1];
    const auto prefetch = [&](std::size_t j, std::size_t last) __attribute__((always_inline)) {
        for (; j < last && j < all; ++j) {
            for (std::size_t i = 0; i < prefetched; i += 16) __builtin_prefetch(source[j] + i);
        }
    };
    prefetch(0, ahead);
    std::size_t first = 0;
    for (std::size_t m = 0; m < bags; ++m) {
        const std::size_t rows = ends[m] - first;
        prefetch(first + ahead, ends[m] + ahead);
        if (rows == 0) {
            for_lanes(dim, [&](auto access, std::size_t i)
                               __attribute__((always_inline)) { store_floats(access, target[m] + i, Floats{}); });
            continue;
        }
        std::size_t i = 0;
        for (; i + 4 * lanes <= dim; i += 4 * lanes) pool_blocks<4>(Whole(), i, rows, source + first, target[m]);
        for (; i + lanes <= dim; i += lanes) pool_blocks<1>(Whole(), i, rows, source + first, target[m]);
        if (i < dim) pool_blocks<1>(PartLanes((dim - i) * sizeof(float)), i, rows, source + first, target[m]);
        first = ends[m];
    }
}

bool is_finite(std::size_t count, const float* values) {
    // Without its sign, a float with a full exponent is at least 0x7f800000: adding 0x00800000 reaches the sign bit.
    Words reached = {};
    for_lanes(count, [&](auto access, std::size_t i) {
        const Words bits = reinterpret_cast<Words>(load_floats(access, values + i));
        reached |= (bits & 0x7fffffffu) + 0x00800000u;
    });
    return all_zero(reinterpret_cast<Bytes>(reached & 0x80000000u));
}

void sum_rows(std::size_t rows, std::size_t dim, const float* const* source, float* const* target, const bool* adds) {
    alignas(block) float minus_zeros[lanes];
    for (float& zero : minus_zeros) zero = -0.0f;
    const auto sum_all = [&](std::size_t count) __attribute__((always_inline)) {
        constexpr std::size_t ahead = 16;
        const std::size_t prefetched = count < 256 ? count : 256;
        for (std::size_t m = 0; m < rows; ++m) {
            if (m + ahead < rows) {
                for (std::size_t i = 0; i < prefetched; i += 16) {
                    __builtin_prefetch(source[m + ahead] + i);
                    __builtin_prefetch(target[m + ahead] + i, 1);
                }
            }
            // Minus zero, which is -0 + x = x for every x, takes the place of a target that is not added to: without a
            // branch, and without waiting for the target's memory.
            const float* before = adds[m] ? target[m] : minus_zeros;
            const std::size_t reach = adds[m] ? ~std::size_t{0} : 0;
            const float* from = source[m];
            float* to = target[m];
            for_lanes(count, [&](auto access, std::size_t i) __attribute__((always_inline)) {
                store_floats(access, to + i, load_floats(access, before + (i & reach)) + load_floats(access, from + i));
            });
        }
    };
    with_length(dim, sum_all);
}
