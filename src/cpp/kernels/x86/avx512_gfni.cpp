// AVX-512 (F, BW, DQ, VL) and GFNI: VGF2P8AFFINEQB multiplies 64 bytes by a constant in one instruction, its
// matrix broadcast from memory.
// Bound by: the load and store ports, so there is no special case for a coefficient of one.
// Tail: masked loads and stores, which do not fault on what they leave out.
#include <immintrin.h>

#include "kernels/initial.hpp"
#include "kernels/operations.hpp"
#include "kernels/x86/target.hpp"

// The "undefined" vectors of GCC 12's own headers (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
ECREC_TARGET_BEGIN("avx2,avx512f,avx512bw,avx512dq,avx512vl,gfni")

namespace ecrec::avx512_gfni {
namespace {

constexpr std::size_t block = 64;
constexpr std::size_t prefetch_rows = 8;

// ------------------------------------------------------------------ bytes

struct WholeBlock {
    __m512i load(const std::uint8_t* at) const { return _mm512_loadu_si512(at); }
    void store(std::uint8_t* at, __m512i x) const { _mm512_storeu_si512(at, x); }
};

struct PartBlock {
    explicit PartBlock(std::size_t bytes) : mask((static_cast<__mmask64>(1) << bytes) - 1) {}

    __m512i load(const std::uint8_t* at) const { return _mm512_maskz_loadu_epi8(mask, at); }
    void store(std::uint8_t* at, __m512i x) const { _mm512_mask_storeu_epi8(at, mask, x); }

    __mmask64 mask;
};

// step(access, index) over the bytes, 64 at a time.
template <class Step>
void for_blocks(std::size_t bytes, Step step) {
    std::size_t i = 0;
    for (; i + block <= bytes; i += block) step(WholeBlock{}, i);
    if (i < bytes) step(PartBlock(bytes - i), i);
}

__m512i product(const Coefficient& c, __m512i x) {
    return _mm512_gf2p8affine_epi64_epi8(x, _mm512_set1_epi64(static_cast<long long>(c.matrix)), 0);
}

void fold(std::size_t bytes, const Coefficient& c, const std::uint8_t* source, std::uint8_t* target) {
    for_blocks(bytes, [&](auto access, std::size_t i) {
        const __m512i change = product(c, access.load(source + i));
        access.store(target + i, _mm512_xor_si512(access.load(target + i), change));
    });
}

void fold_rows(std::size_t rows, std::size_t bytes, const Coefficient& c, const std::uint8_t* source,
               std::uint8_t* const* target) {
    for (std::size_t m = 0; m < rows; ++m) {
        if (m + prefetch_rows < rows) {
            const std::uint8_t* later = target[m + prefetch_rows];
            for (std::size_t line = 0; line < bytes; line += 64) __builtin_prefetch(later + line, 1);
        }
        fold(bytes, c, source + m * bytes, target[m]);
    }
}

// Two blocks wide where it can: twice the products for each matrix loaded, and more of them independent.
template <int R, int Width, class Access>
void encode_block(Access access, std::size_t at, int k, const Coefficient* coefficients,
                  const std::uint8_t* const* data, std::uint8_t* const* parity) {
    __m512i sum[R][Width];
    for (int i = 0; i < R; ++i) {
        for (int w = 0; w < Width; ++w) sum[i][w] = _mm512_setzero_si512();
    }
    for (int j = 0; j < k; ++j) {
        __m512i x[Width];
        for (int w = 0; w < Width; ++w) x[w] = access.load(data[j] + at + w * block);
        for (int i = 0; i < R; ++i) {
            const Coefficient& c = coefficients[i * k + j];
            for (int w = 0; w < Width; ++w) sum[i][w] = _mm512_xor_si512(sum[i][w], product(c, x[w]));
        }
    }
    for (int i = 0; i < R; ++i) {
        for (int w = 0; w < Width; ++w) access.store(parity[i] + at + w * block, sum[i][w]);
    }
}

template <int R>
void encode_rows(std::size_t bytes, int k, const Coefficient* coefficients, const std::uint8_t* const* data,
                 std::uint8_t* const* parity) {
    std::size_t at = 0;
    for (; at + 2 * block <= bytes; at += 2 * block) {
        encode_block<R, 2>(WholeBlock{}, at, k, coefficients, data, parity);
    }
    for_blocks(bytes - at, [&](auto access, std::size_t i) {
        encode_block<R, 1>(access, at + i, k, coefficients, data, parity);
    });
}

void encode(std::size_t bytes, int k, int r, const Coefficient* coefficients, const std::uint8_t* const* data,
            std::uint8_t* const* parity) {
    for (int i = 0; i < r; i += 4) {
        const Coefficient* rows = coefficients + static_cast<std::size_t>(i) * k;
        switch (r - i) {
            case 1: encode_rows<1>(bytes, k, rows, data, parity + i); break;
            case 2: encode_rows<2>(bytes, k, rows, data, parity + i); break;
            case 3: encode_rows<3>(bytes, k, rows, data, parity + i); break;
            default: encode_rows<4>(bytes, k, rows, data, parity + i); break;
        }
    }
}

void difference(std::size_t bytes, const std::uint8_t* a, const std::uint8_t* b, std::uint8_t* target) {
    for_blocks(bytes, [&](auto access, std::size_t i) {
        access.store(target + i, _mm512_xor_si512(access.load(a + i), access.load(b + i)));
    });
}

bool is_zero(std::size_t bytes, const std::uint8_t* data) {
    std::size_t i = 0;
    for (; i + block <= bytes; i += block) {
        const __m512i x = WholeBlock{}.load(data + i);
        if (_mm512_test_epi64_mask(x, x) != 0) return false;
    }
    if (i == bytes) return true;
    const __m512i x = PartBlock(bytes - i).load(data + i);
    return _mm512_test_epi64_mask(x, x) == 0;
}

// ------------------------------------------------------------------ floats

struct WholeLanes {
    __m512 load(const float* at) const { return _mm512_loadu_ps(at); }
    void store(float* at, __m512 x) const { _mm512_storeu_ps(at, x); }
    __m512i load_bits(const std::uint8_t* at) const { return _mm512_loadu_si512(at); }
    void store_bits(std::uint8_t* at, __m512i x) const { _mm512_storeu_si512(at, x); }
};

// The first `count` (0..15) lanes; the others load as zero and are not stored.
struct FirstLanes {
    explicit FirstLanes(std::size_t count) : mask(static_cast<__mmask16>((1u << count) - 1)) {}

    __m512 load(const float* at) const { return _mm512_maskz_loadu_ps(mask, at); }
    void store(float* at, __m512 x) const { _mm512_mask_storeu_ps(at, mask, x); }
    __m512i load_bits(const std::uint8_t* at) const { return _mm512_maskz_loadu_epi32(mask, at); }
    void store_bits(std::uint8_t* at, __m512i x) const { _mm512_mask_storeu_epi32(at, mask, x); }

    __mmask16 mask;
};

// step(lanes, index) over count floats, sixteen at a time.
template <class Step>
void for_lanes(std::size_t count, Step step) {
    std::size_t i = 0;
    for (; i + 16 <= count; i += 16) step(WholeLanes{}, i);
    if (i < count) step(FirstLanes(count - i), i);
}

// record[index..] = next; delta, if any, takes in the bits that changed.
template <class Lanes>
void replace(Lanes lanes, float* record, std::size_t index, __m512 old, __m512 next, std::uint8_t* delta) {
    if (delta != nullptr) {
        const __m512i changed = _mm512_xor_si512(_mm512_castps_si512(old), _mm512_castps_si512(next));
        lanes.store_bits(delta + 4 * index, _mm512_xor_si512(lanes.load_bits(delta + 4 * index), changed));
    }
    lanes.store(record + index, next);
}

bool is_finite(std::size_t count, const float* values) {
    const __m512i exponent = _mm512_set1_epi32(0x7f800000);
    __mmask16 bad = 0;
    for_lanes(count, [&](auto lanes, std::size_t i) {
        const __m512i bits = _mm512_castps_si512(lanes.load(values + i));
        bad |= _mm512_cmpeq_epi32_mask(_mm512_and_si512(bits, exponent), exponent);
    });
    return bad == 0;
}

void add(std::size_t count, const float* source, float* target) {
    for_lanes(count, [&](auto lanes, std::size_t i) {
        lanes.store(target + i, _mm512_add_ps(lanes.load(target + i), lanes.load(source + i)));
    });
}

// record[i] -= step * gradient[i]
void descend(std::size_t dim, float step, const float* gradient, float* record, std::uint8_t* delta) {
    const __m512 steps = _mm512_set1_ps(step);
    for_lanes(dim, [&](auto lanes, std::size_t i) {
        const __m512 old = lanes.load(record + i);
        const __m512 change = _mm512_mul_ps(steps, lanes.load(gradient + i));
        replace(lanes, record, i, old, _mm512_sub_ps(old, change), delta);
    });
}

void sgd(std::size_t dim, float learning_rate, const float* gradient, float* record, std::uint8_t* delta) {
    descend(dim, learning_rate, gradient, record, delta);
}

void adagrad(std::size_t dim, float learning_rate, float eps, const float* gradient, float* record,
             std::uint8_t* delta) {
    const __m512 rates = _mm512_set1_ps(learning_rate);
    const __m512 epsilons = _mm512_set1_ps(eps);
    for_lanes(dim, [&](auto lanes, std::size_t i) {
        const __m512 g = lanes.load(gradient + i);
        const __m512 old_sum = lanes.load(record + dim + i);
        const __m512 sum = _mm512_add_ps(old_sum, _mm512_mul_ps(g, g));
        const __m512 old = lanes.load(record + i);
        const __m512 step =
            _mm512_div_ps(_mm512_mul_ps(rates, g), _mm512_add_ps(_mm512_sqrt_ps(sum), epsilons));
        replace(lanes, record, dim + i, old_sum, sum, delta);
        replace(lanes, record, i, old, _mm512_sub_ps(old, step), delta);
    });
}

// In sixteen lanes: see rowwise_adagrad of the scalar kernel.
float sum_of_squares(std::size_t count, const float* values) {
    __m512 sixteen = _mm512_setzero_ps();
    for_lanes(count, [&](auto lanes, std::size_t i) {
        const __m512 x = lanes.load(values + i);
        sixteen = _mm512_add_ps(sixteen, _mm512_mul_ps(x, x));
    });
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(sixteen), _mm512_extractf32x8_ps(sixteen, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

void rowwise_adagrad(std::size_t dim, float learning_rate, float eps, const float* gradient, float* record,
                     std::uint8_t* delta) {
    const float old = record[dim];
    const float moment = old + sum_of_squares(dim, gradient) / static_cast<float>(dim);
    const float root = _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(moment)));
    descend(dim, learning_rate / (root + eps), gradient, record, delta);
    replace(FirstLanes(1), record, dim, _mm512_set1_ps(old), _mm512_set1_ps(moment), delta);
}

__m512i constant(std::uint32_t value) { return _mm512_set1_epi32(static_cast<std::int32_t>(value)); }

void initial_uniform(std::size_t dim, std::uint64_t seed, std::uint64_t row, float scale, float* weights) {
    const std::uint64_t key = row_key(seed, row);
    const __m512i low = constant(static_cast<std::uint32_t>(key));
    const __m512i high = constant(static_cast<std::uint32_t>(key >> 32));
    const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 unit = _mm512_set1_ps(scale / 8388608.0f);
    for_lanes(dim, [&](auto lanes, std::size_t i) {
        const __m512i column = _mm512_add_epi32(iota, constant(static_cast<std::uint32_t>(i)));
        __m512i x = _mm512_add_epi32(_mm512_mullo_epi32(column, constant(column_step)), low);
        x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 17));
        x = _mm512_add_epi32(_mm512_mullo_epi32(x, constant(mix_1)), high);
        x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 11));
        x = _mm512_mullo_epi32(x, constant(mix_2));
        x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 15));
        x = _mm512_mullo_epi32(x, constant(mix_3));
        x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 14));
        const __m512i centred = _mm512_sub_epi32(_mm512_srli_epi32(x, 8), constant(1u << 23));
        lanes.store(weights + i, _mm512_mul_ps(_mm512_cvtepi32_ps(centred), unit));
    });
}

}  // namespace

extern const Operations table = {
    "avx512-gfni", encode, fold,    fold_rows,       difference,      is_zero, is_finite,
    add,           sgd,    adagrad, rowwise_adagrad, initial_uniform,
};

}  // namespace ecrec::avx512_gfni

ECREC_TARGET_END
#pragma GCC diagnostic pop
