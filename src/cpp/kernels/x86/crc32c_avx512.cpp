// Carry-less multiplication of 64 bytes at a time: all of them in one stream, which the processor reads ahead.
//
// A register of 128 bits stands for a polynomial of which later bytes are the lower powers. To move it past `distance` bits
// its halves are multiplied with x^(distance + 32) and x^(distance - 32), without x^32 and more of the remainder's own
// width, and added up: Gopal and others, "Fast CRC computation for generic polynomials using PCLMULQDQ" (Intel, 2009),
// with bits in reflected order, where a product is one place too low.
#include <immintrin.h>
#include <nmmintrin.h>

#include "kernels/crc32c.hpp"

#define ECREC_CRC_TARGET __attribute__((target("sse4.2,avx512f,avx512bw,avx512dq,avx512vl,pclmul,vpclmulqdq")))

namespace ecrec::crc {

#include "kernels/x86/crc32c_words.inl"

#include "kernels/crc32c.inl"

// The "undefined" vectors of GCC 12's own headers (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace {

struct Factors {
    std::uint64_t low, high;
};

// Of the lower and the upper half of a register that moves past so many bytes.
constexpr Factors factors(std::size_t bytes) {
    return {static_cast<std::uint64_t>(shift_by(bytes + 4)) << 1, static_cast<std::uint64_t>(shift_by(bytes - 4)) << 1};
}

constexpr std::size_t vector = 64, vectors = 4, step = vector * vectors;
constexpr Factors past_step = factors(step), past_vector = factors(vector), past_lane = factors(16);

ECREC_CRC_TARGET inline __m512i broadcast(const Factors& by) {
    return _mm512_broadcast_i64x2(_mm_set_epi64x(static_cast<long long>(by.high), static_cast<long long>(by.low)));
}

// Each register of `value` moved, with what comes there.
ECREC_CRC_TARGET inline __m512i moved(__m512i value, __m512i by, __m512i with) {
    constexpr int sum_of_three = 0x96;
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(value, by, 0x00),
                                     _mm512_clmulepi64_epi128(value, by, 0x11), with, sum_of_three);
}

ECREC_CRC_TARGET inline __m128i moved(__m128i value, __m128i by, __m128i with) {
    const __m128i low = _mm_clmulepi64_si128(value, by, 0x00), high = _mm_clmulepi64_si128(value, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), with);
}

}  // namespace

ECREC_CRC_TARGET std::uint32_t run_avx512(std::uint32_t value, std::size_t bytes, const std::uint8_t* data) {
    if (bytes < 2 * step) return run(value, bytes, data);
    const auto load = [&](std::size_t i) ECREC_CRC_TARGET { return _mm512_loadu_si512(data + i * vector); };
    const __m512i begin = _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(value)));
    __m512i a = _mm512_xor_si512(load(0), begin), b = load(1), c = load(2), d = load(3);
    const __m512i by_step = broadcast(past_step), by_vector = broadcast(past_vector);
    for (data += step, bytes -= step; bytes >= step; data += step, bytes -= step) {
        a = moved(a, by_step, load(0));
        b = moved(b, by_step, load(1));
        c = moved(c, by_step, load(2));
        d = moved(d, by_step, load(3));
    }
    d = moved(moved(moved(a, by_vector, b), by_vector, c), by_vector, d);
    for (; bytes >= vector; data += vector, bytes -= vector) d = moved(d, by_vector, load(0));
    const __m128i by_lane = _mm512_castsi512_si128(broadcast(past_lane));
    __m128i lane = _mm512_castsi512_si128(d);
    lane = moved(lane, by_lane, _mm512_extracti64x2_epi64(d, 1));
    lane = moved(lane, by_lane, _mm512_extracti64x2_epi64(d, 2));
    lane = moved(lane, by_lane, _mm512_extracti64x2_epi64(d, 3));
    // What is left has the same remainder as all that was read.
    std::uint64_t rest = crc_word(0, static_cast<std::uint64_t>(_mm_cvtsi128_si64(lane)));
    rest = crc_word(rest, static_cast<std::uint64_t>(_mm_extract_epi64(lane, 1)));
    return run(static_cast<std::uint32_t>(rest), bytes, data);
}

#pragma GCC diagnostic pop

}  // namespace ecrec::crc
