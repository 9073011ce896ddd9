// Vectors of 64 bytes, for AVX-512 with and without GFNI. See loops.inl.

constexpr std::size_t block = 64;
constexpr int registers = 32;
#include "kernels/vectors.inl"

// A masked load or store does not fault on what it leaves out.
struct Part {
    explicit Part(std::size_t bytes) : mask((static_cast<__mmask64>(1) << bytes) - 1) {}

    Bytes load(const std::uint8_t* at) const { return reinterpret_cast<Bytes>(_mm512_maskz_loadu_epi8(mask, at)); }
    void store(std::uint8_t* at, Bytes x) const { _mm512_mask_storeu_epi8(at, mask, reinterpret_cast<__m512i>(x)); }

    __mmask64 mask;
};
using PartLanes = Part;

constexpr bool has_stream = true;
void stream(std::uint8_t* at, Bytes x) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(at), reinterpret_cast<__m512i>(x));
}
void fence() { _mm_sfence(); }

// Blocks one after the other to a multiple of 16 bytes: lines that get all their bytes here past the caches. The first
// and the last one, which others share, are stored in part.
constexpr bool has_line_stream = true;
struct LineStream {
    explicit LineStream(std::uint8_t* to) : offset(reinterpret_cast<std::uintptr_t>(to) % block), line(to - offset) {
        // The last `offset` bytes of the block before, then the first ones of the next.
        const __m512i numbers = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        order = _mm512_add_epi32(numbers, _mm512_set1_epi32(static_cast<int>((block - offset) / 4)));
    }

    void first(Bytes x) { _mm512_mask_storeu_epi8(line, ~__mmask64{0} << offset, joined(x)); }
    void next(Bytes x) {
        line += block;
        _mm512_stream_si512(reinterpret_cast<__m512i*>(line), joined(x));
    }
    // The first 16 bytes of it.
    void last(Bytes x) {
        line += block;
        _mm512_mask_storeu_epi8(line, ~__mmask64{0} >> (block - 16 - offset), joined(x));
    }

    __m512i joined(Bytes x) {
        const __m512i after = reinterpret_cast<__m512i>(x), before = held;
        held = after;
        return _mm512_permutex2var_epi32(before, order, after);
    }

    std::size_t offset;
    std::uint8_t* line;
    __m512i order, held = _mm512_setzero_si512();
};

bool all_zero(Bytes x) {
    return _mm512_test_epi64_mask(reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(x)) == 0;
}

Floats square_root(Floats x) { return _mm512_sqrt_ps(x); }

float sum_of_lanes(Floats sixteen) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(sixteen), _mm512_extractf32x8_ps(sixteen, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
