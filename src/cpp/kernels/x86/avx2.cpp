// AVX2: VPSHUFB as sixteen-entry table look-up, two a product (low and high nibble); maskload/maskstore for
// floats.
// Bound by: the shuffle ports for products, the load and store ports for a coefficient of one (plain XOR).
// Tail: encode repeats an overlapping last block; what XORs in place goes on with 16 bytes, then single
// bytes; floats use a mask.
#include <immintrin.h>

#include <cstring>

#include "kernels/initial.hpp"
#include "kernels/operations.hpp"
#include "kernels/x86/target.hpp"

ECREC_TARGET_BEGIN("avx2")

namespace ecrec::avx2 {
namespace {

constexpr std::size_t block = 32;
constexpr std::size_t prefetch_rows = 8;

// ------------------------------------------------------------------ bytes

__m256i load(const std::uint8_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
void store(std::uint8_t* at, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), x); }
__m128i load_half(const std::uint8_t* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); }
void store_half(std::uint8_t* at, __m128i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(at), x); }

// target[i] = whole(...), half(...) or byte(...) of the elements, by block size.
template <class Whole, class Half, class Byte>
void for_each(std::size_t bytes, Whole whole, Half half, Byte byte) {
    std::size_t i = 0;
    for (; i + block <= bytes; i += block) whole(i);
    if (i + 16 <= bytes) {
        half(i);
        i += 16;
    }
    for (; i < bytes; ++i) byte(i);
}

struct Nibbles {
    __m256i low, high;
};

Nibbles split(__m256i x) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(x, mask), _mm256_and_si256(_mm256_srli_epi16(x, 4), mask)};
}

struct Product {
    explicit Product(const Coefficient& c)
        : low(_mm256_broadcastsi128_si256(load_half(c.low))),
          high(_mm256_broadcastsi128_si256(load_half(c.high))) {}

    __m256i operator()(Nibbles x) const {
        return _mm256_xor_si256(_mm256_shuffle_epi8(low, x.low), _mm256_shuffle_epi8(high, x.high));
    }
    __m128i operator()(__m128i x) const {
        const __m128i mask = _mm_set1_epi8(15);
        return _mm_xor_si128(
            _mm_shuffle_epi8(_mm256_castsi256_si128(low), _mm_and_si128(x, mask)),
            _mm_shuffle_epi8(_mm256_castsi256_si128(high), _mm_and_si128(_mm_srli_epi16(x, 4), mask)));
    }

    __m256i low, high;
};

void difference(std::size_t bytes, const std::uint8_t* a, const std::uint8_t* b, std::uint8_t* target) {
    for_each(
        bytes, [&](std::size_t i) { store(target + i, _mm256_xor_si256(load(a + i), load(b + i))); },
        [&](std::size_t i) { store_half(target + i, _mm_xor_si128(load_half(a + i), load_half(b + i))); },
        [&](std::size_t i) { target[i] = a[i] ^ b[i]; });
}

void fold_one(std::size_t bytes, const std::uint8_t* source, std::uint8_t* target) {
    difference(bytes, target, source, target);
}

void fold_product(std::size_t bytes, const Coefficient& c, Product product, const std::uint8_t* source,
                  std::uint8_t* target) {
    for_each(
        bytes,
        [&](std::size_t i) {
            store(target + i, _mm256_xor_si256(load(target + i), product(split(load(source + i)))));
        },
        [&](std::size_t i) {
            store_half(target + i, _mm_xor_si128(load_half(target + i), product(load_half(source + i))));
        },
        [&](std::size_t i) { target[i] ^= c.low[source[i] & 15] ^ c.high[source[i] >> 4]; });
}

void fold(std::size_t bytes, const Coefficient& c, const std::uint8_t* source, std::uint8_t* target) {
    if (c.value == 1) {
        fold_one(bytes, source, target);
    } else {
        fold_product(bytes, c, Product(c), source, target);
    }
}

template <class Fold>
void fold_each_row(std::size_t rows, std::size_t bytes, const std::uint8_t* source,
                   std::uint8_t* const* target, Fold fold_row) {
    for (std::size_t m = 0; m < rows; ++m) {
        if (m + prefetch_rows < rows) {
            const std::uint8_t* later = target[m + prefetch_rows];
            for (std::size_t line = 0; line < bytes; line += 64) __builtin_prefetch(later + line, 1);
        }
        fold_row(source + m * bytes, target[m]);
    }
}

void fold_rows(std::size_t rows, std::size_t bytes, const Coefficient& c, const std::uint8_t* source,
               std::uint8_t* const* target) {
    if (c.value == 1) {
        fold_each_row(rows, bytes, source, target,
                      [&](const std::uint8_t* from, std::uint8_t* to) { fold_one(bytes, from, to); });
    } else {
        const Product product(c);
        fold_each_row(rows, bytes, source, target, [&](const std::uint8_t* from, std::uint8_t* to) {
            fold_product(bytes, c, product, from, to);
        });
    }
}

struct WholeBlock {
    __m256i load(const std::uint8_t* at) const { return avx2::load(at); }
    void store(std::uint8_t* at, __m256i x) const { avx2::store(at, x); }
};

// Fewer bytes than a block, by way of memory: only for buffers shorter than one block.
struct ShortBlock {
    std::size_t bytes;

    __m256i load(const std::uint8_t* at) const {
        std::uint8_t copy[block] = {};
        std::memcpy(copy, at, bytes);
        return avx2::load(copy);
    }
    void store(std::uint8_t* at, __m256i x) const {
        std::uint8_t copy[block];
        avx2::store(copy, x);
        std::memcpy(at, copy, bytes);
    }
};

template <int R, class Access>
void encode_block(Access access, std::size_t at, int k, const Coefficient* coefficients,
                  const std::uint8_t* const* data, std::uint8_t* const* parity) {
    __m256i sum[R];
    for (int i = 0; i < R; ++i) sum[i] = _mm256_setzero_si256();
    for (int j = 0; j < k; ++j) {
        const __m256i x = access.load(data[j] + at);
        const Nibbles nibbles = split(x);
        for (int i = 0; i < R; ++i) {
            const Coefficient& c = coefficients[i * k + j];
            // The first parity is plain XOR by construction, and the choice is the same in every block.
            sum[i] = _mm256_xor_si256(sum[i], c.value == 1 ? x : Product(c)(nibbles));
        }
    }
    for (int i = 0; i < R; ++i) access.store(parity[i] + at, sum[i]);
}

template <int R>
void encode_rows(std::size_t bytes, int k, const Coefficient* coefficients, const std::uint8_t* const* data,
                 std::uint8_t* const* parity) {
    if (bytes < block) {
        encode_block<R>(ShortBlock{bytes}, 0, k, coefficients, data, parity);
        return;
    }
    std::size_t at = 0;
    for (; at + block <= bytes; at += block) encode_block<R>(WholeBlock{}, at, k, coefficients, data, parity);
    if (at < bytes) encode_block<R>(WholeBlock{}, bytes - block, k, coefficients, data, parity);
}

void encode(std::size_t bytes, int k, int r, const Coefficient* coefficients, const std::uint8_t* const* data,
            std::uint8_t* const* parity) {
    if (bytes == 0) return;
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

bool is_zero(std::size_t bytes, const std::uint8_t* data) {
    std::size_t i = 0;
    for (; i + block <= bytes; i += block) {
        const __m256i x = load(data + i);
        if (!_mm256_testz_si256(x, x)) return false;
    }
    for (; i < bytes; ++i) {
        if (data[i] != 0) return false;
    }
    return true;
}

// ------------------------------------------------------------------ floats

struct WholeLanes {
    __m256 load(const float* at) const { return _mm256_loadu_ps(at); }
    void store(float* at, __m256 x) const { _mm256_storeu_ps(at, x); }
    __m256i load_bits(const std::uint8_t* at) const { return avx2::load(at); }
    void store_bits(std::uint8_t* at, __m256i x) const { avx2::store(at, x); }
};

// The first `count` (0..8) lanes; the others load as zero and are not stored.
struct FirstLanes {
    explicit FirstLanes(std::size_t count) {
        alignas(32) static constexpr std::int32_t ones_then_zeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
        mask = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ones_then_zeros + 8 - count));
    }

    __m256 load(const float* at) const { return _mm256_maskload_ps(at, mask); }
    void store(float* at, __m256 x) const { _mm256_maskstore_ps(at, mask, x); }
    __m256i load_bits(const std::uint8_t* at) const {
        return _mm256_maskload_epi32(reinterpret_cast<const int*>(at), mask);
    }
    void store_bits(std::uint8_t* at, __m256i x) const {
        _mm256_maskstore_epi32(reinterpret_cast<int*>(at), mask, x);
    }

    __m256i mask;
};

// step(lanes, index) over count floats, eight at a time.
template <class Step>
void for_lanes(std::size_t count, Step step) {
    std::size_t i = 0;
    for (; i + 8 <= count; i += 8) step(WholeLanes{}, i);
    if (i < count) step(FirstLanes(count - i), i);
}

// record[index..] = next; delta, if any, takes in the bits that changed.
template <class Lanes>
void replace(Lanes lanes, float* record, std::size_t index, __m256 old, __m256 next, std::uint8_t* delta) {
    if (delta != nullptr) {
        const __m256i changed = _mm256_castps_si256(_mm256_xor_ps(old, next));
        lanes.store_bits(delta + 4 * index, _mm256_xor_si256(lanes.load_bits(delta + 4 * index), changed));
    }
    lanes.store(record + index, next);
}

bool is_finite(std::size_t count, const float* values) {
    const __m256i exponent = _mm256_set1_epi32(0x7f800000);
    __m256i bad = _mm256_setzero_si256();
    for_lanes(count, [&](auto lanes, std::size_t i) {
        const __m256i bits = _mm256_castps_si256(lanes.load(values + i));
        bad = _mm256_or_si256(bad, _mm256_cmpeq_epi32(_mm256_and_si256(bits, exponent), exponent));
    });
    return _mm256_testz_si256(bad, bad) != 0;
}

void add(std::size_t count, const float* source, float* target) {
    for_lanes(count, [&](auto lanes, std::size_t i) {
        lanes.store(target + i, _mm256_add_ps(lanes.load(target + i), lanes.load(source + i)));
    });
}

// record[i] -= step * gradient[i]
void descend(std::size_t dim, float step, const float* gradient, float* record, std::uint8_t* delta) {
    const __m256 steps = _mm256_set1_ps(step);
    for_lanes(dim, [&](auto lanes, std::size_t i) {
        const __m256 old = lanes.load(record + i);
        const __m256 change = _mm256_mul_ps(steps, lanes.load(gradient + i));
        replace(lanes, record, i, old, _mm256_sub_ps(old, change), delta);
    });
}

void sgd(std::size_t dim, float learning_rate, const float* gradient, float* record, std::uint8_t* delta) {
    descend(dim, learning_rate, gradient, record, delta);
}

void adagrad(std::size_t dim, float learning_rate, float eps, const float* gradient, float* record,
             std::uint8_t* delta) {
    const __m256 rates = _mm256_set1_ps(learning_rate);
    const __m256 epsilons = _mm256_set1_ps(eps);
    for_lanes(dim, [&](auto lanes, std::size_t i) {
        const __m256 g = lanes.load(gradient + i);
        const __m256 old_sum = lanes.load(record + dim + i);
        const __m256 sum = _mm256_add_ps(old_sum, _mm256_mul_ps(g, g));
        const __m256 old = lanes.load(record + i);
        const __m256 step =
            _mm256_div_ps(_mm256_mul_ps(rates, g), _mm256_add_ps(_mm256_sqrt_ps(sum), epsilons));
        replace(lanes, record, dim + i, old_sum, sum, delta);
        replace(lanes, record, i, old, _mm256_sub_ps(old, step), delta);
    });
}

// In sixteen lanes: see rowwise_adagrad of the scalar kernel.
float sum_of_squares(std::size_t count, const float* values) {
    __m256 first = _mm256_setzero_ps();
    __m256 second = _mm256_setzero_ps();
    for_lanes(count, [&](auto lanes, std::size_t i) {
        const __m256 x = lanes.load(values + i);
        __m256& half = i % 16 == 0 ? first : second;
        half = _mm256_add_ps(half, _mm256_mul_ps(x, x));
    });
    const __m256 eight = _mm256_add_ps(first, second);
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
    replace(FirstLanes(1), record, dim, _mm256_set1_ps(old), _mm256_set1_ps(moment), delta);
}

void initial_uniform(std::size_t dim, std::uint64_t seed, std::uint64_t row, float scale, float* weights) {
    const std::uint64_t key = row_key(seed, row);
    const __m256i low = _mm256_set1_epi32(static_cast<std::int32_t>(key));
    const __m256i high = _mm256_set1_epi32(static_cast<std::int32_t>(key >> 32));
    const __m256i iota = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256 unit = _mm256_set1_ps(scale / 8388608.0f);
    for_lanes(dim, [&](auto lanes, std::size_t i) {
        const __m256i column = _mm256_add_epi32(iota, _mm256_set1_epi32(static_cast<std::int32_t>(i)));
        __m256i x = _mm256_mullo_epi32(column, _mm256_set1_epi32(static_cast<std::int32_t>(column_step)));
        x = _mm256_add_epi32(x, low);
        x = _mm256_xor_si256(x, _mm256_srli_epi32(x, 17));
        x = _mm256_mullo_epi32(x, _mm256_set1_epi32(static_cast<std::int32_t>(mix_1)));
        x = _mm256_add_epi32(x, high);
        x = _mm256_xor_si256(x, _mm256_srli_epi32(x, 11));
        x = _mm256_mullo_epi32(x, _mm256_set1_epi32(static_cast<std::int32_t>(mix_2)));
        x = _mm256_xor_si256(x, _mm256_srli_epi32(x, 15));
        x = _mm256_mullo_epi32(x, _mm256_set1_epi32(static_cast<std::int32_t>(mix_3)));
        x = _mm256_xor_si256(x, _mm256_srli_epi32(x, 14));
        const __m256i centred = _mm256_sub_epi32(_mm256_srli_epi32(x, 8), _mm256_set1_epi32(1 << 23));
        lanes.store(weights + i, _mm256_mul_ps(_mm256_cvtepi32_ps(centred), unit));
    });
}

}  // namespace

extern const Operations table = {
    "avx2", encode, fold,    fold_rows,       difference,      is_zero, is_finite,
    add,    sgd,    adagrad, rowwise_adagrad, initial_uniform,
};

}  // namespace ecrec::avx2

ECREC_TARGET_END
