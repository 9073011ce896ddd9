// Rows of floats, a block at a time. A part of loops.inl, and of the scalar kernel.

template <class Access>
Floats load_floats(Access access, const float* at) {
    return reinterpret_cast<Floats>(access.load(reinterpret_cast<const std::uint8_t*>(at)));
}

template <class Access>
void store_floats(Access access, float* at, Floats x) {
    access.store(reinterpret_cast<std::uint8_t*>(at), reinterpret_cast<Bytes>(x));
}

// step(access, index) over count floats, a block at a time.
template <class Step>
[[gnu::always_inline]] inline void for_lanes(std::size_t count, Step step) {
    std::size_t i = 0;
    for (; i + lanes <= count; i += lanes) step(Whole(), i);
    if (i < count) step(PartLanes((count - i) * sizeof(float)), i);
}

// call(count), with the usual dimensions as constants: loops that the compiler unrolls.
template <class Call>
[[gnu::always_inline]] inline void with_length(std::size_t count, Call call) {
    switch (count) {
        case 64: call(std::size_t{64}); break;
        case 128: call(std::size_t{128}); break;
        default: call(count);
    }
}
