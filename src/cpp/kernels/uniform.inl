// Initial weights. A part of loops.inl.

void initial_uniform(std::size_t dim, std::uint64_t seed, std::uint64_t row, float scale, float* weights) {
    static constexpr std::uint32_t numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Words iota;
    std::memcpy(&iota, numbers, block);
    const std::uint64_t key = row_key(seed, row);
    const std::uint32_t low = static_cast<std::uint32_t>(key);
    const std::uint32_t high = static_cast<std::uint32_t>(key >> 32);
    const float unit = scale / 8388608.0f;
    for_lanes(dim, [&](auto access, std::size_t i) {
        Words x = (iota + static_cast<std::uint32_t>(i)) * column_step + low;
        x ^= x >> 17;
        x = x * mix_1 + high;
        x ^= x >> 11;
        x *= mix_2;
        x ^= x >> 15;
        x *= mix_3;
        x ^= x >> 14;
        const SignedWords centred = reinterpret_cast<SignedWords>((x >> 8) - (1u << 23));
        store_floats(access, weights + i, __builtin_convertvector(centred, Floats) * unit);
    });
}
