// Vectors of 32 bytes, for AVX2 with and without GFNI. See loops.inl.

constexpr std::size_t block = 32;
constexpr int registers = 16;
#include "kernels/vectors.inl"

using Part = CopiedPart;

struct PartLanes {
    explicit PartLanes(std::size_t bytes) {
        alignas(32) static constexpr std::int32_t ones_then_zeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
        // NOLINTNEXTLINE(bugprone-sizeof-expression): bytes become a number of lanes
        std::memcpy(&mask, ones_then_zeros + lanes - bytes / sizeof(float), block);
    }

    Bytes load(const std::uint8_t* at) const {
        return reinterpret_cast<Bytes>(_mm256_maskload_epi32(reinterpret_cast<const int*>(at), mask));
    }
    void store(std::uint8_t* at, Bytes x) const {
        _mm256_maskstore_epi32(reinterpret_cast<int*>(at), mask, reinterpret_cast<__m256i>(x));
    }

    __m256i mask;
};

constexpr bool has_stream = true;
void stream(std::uint8_t* at, Bytes x) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(at), reinterpret_cast<__m256i>(x));
}
void fence() { _mm_sfence(); }
constexpr bool has_line_stream = false;
using LineStream = NoLineStream;

bool all_zero(Bytes x) { return _mm256_testz_si256(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(x)) != 0; }

Floats square_root(Floats x) { return _mm256_sqrt_ps(x); }

float sum_of_lanes(Floats eight) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
