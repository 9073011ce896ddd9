// Vectors of 64 bytes, for AVX-512 with and without GFNI. See loops.inl.

constexpr std::size_t block = 64;
constexpr int registers = 32;
#include "kernels/vectors.inl"

// A masked load or store does not fault on what it leaves out.
struct Part {
    explicit Part(std::size_t bytes) : mask((static_cast<__mmask64>(1) << bytes) - 1) {}

    Bytes load(const std::uint8_t* at) const {
        return reinterpret_cast<Bytes>(_mm512_maskz_loadu_epi8(mask, at));
    }
    void store(std::uint8_t* at, Bytes x) const {
        _mm512_mask_storeu_epi8(at, mask, reinterpret_cast<__m512i>(x));
    }

    __mmask64 mask;
};
using PartLanes = Part;

constexpr bool has_stream = true;
void stream(std::uint8_t* at, Bytes x) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(at), reinterpret_cast<__m512i>(x));
}
void fence() { _mm_sfence(); }

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
