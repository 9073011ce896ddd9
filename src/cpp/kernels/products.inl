// Products by coefficients: folding one block into another, and encoding parity. A part of loops.inl.

// target[i] = value(access, i), which may read what the targets hold at i. The last block overlaps the one before it,
// so its value is taken before any target is written.
template <class Value>
[[gnu::always_inline]] inline void write_blocks(std::size_t bytes, std::uint8_t* target, Value value) {
    if (bytes < block) {
        const Part part(bytes);
        if (bytes != 0) part.store(target, value(part, 0));
        return;
    }
    const Whole whole;
    const Bytes last = value(whole, bytes - block);
    std::size_t i = 0;
    for (; i + 4 * block < bytes; i += 4 * block) {
        Bytes next[4];
        for (int w = 0; w < 4; ++w) next[w] = value(whole, i + w * block);
        for (int w = 0; w < 4; ++w) whole.store(target + i + w * block, next[w]);
    }
    for (; i + block < bytes; i += block) whole.store(target + i, value(whole, i));
    whole.store(target + bytes - block, last);
}

void difference(std::size_t bytes, const std::uint8_t* a, const std::uint8_t* b, std::uint8_t* target) {
    write_blocks(bytes, target, [&](auto access, std::size_t i) { return access.load(a + i) ^ access.load(b + i); });
}

struct Product {
    explicit Product(const Coefficient& c) : multiply(constant(c)) {}
    Bytes operator()(Bytes x) const { return multiply(operand(x)); }

    Multiplier multiply;
};
struct Same {
    Bytes operator()(Bytes x) const { return x; }
};

// call(x -> c * x). The first parity, and the first source of each, are plain XOR by construction.
template <class Call>
[[gnu::always_inline]] inline void with_product(const Coefficient& c, Call call) {
    if (c.value == 1) {
        call(Same());
    } else {
        call(Product(c));
    }
}

template <class Multiply>
[[gnu::always_inline]] inline void fold_by(const Multiply& multiply, std::size_t bytes, const std::uint8_t* source,
                                           std::uint8_t* target) {
    write_blocks(bytes, target, [&](auto access, std::size_t i) {
        return access.load(target + i) ^ multiply(access.load(source + i));
    });
}

void fold(std::size_t bytes, const Coefficient& c, const std::uint8_t* source, std::uint8_t* target) {
    with_product(c, [&](auto multiply) __attribute__((always_inline)) { fold_by(multiply, bytes, source, target); });
}

// Memory to memory. `ahead`: ask for the bytes to come; a prefetch beyond the end does not fault.
template <bool ahead>
struct Streamed {
    Bytes load(const std::uint8_t* at) const {
        constexpr std::uintptr_t distance = 1024;
        if (ahead) __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(at) + distance));
        return Whole().load(at);
    }
    void store(std::uint8_t* at, Bytes x) const { stream(at, x); }
};

// Within the caches: ask for the next blocks of parities, and of the data too where `both`. A prefetch beyond the end
// does not fault.
template <bool both>
struct AskingNext {
    static constexpr std::uintptr_t distance = 4 * block;
    Bytes load(const std::uint8_t* at) const {
        if (both) __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(at) + distance));
        return Whole().load(at);
    }
    void store(std::uint8_t* at, Bytes x) const {
        __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(at) + distance), 1);
        Whole().store(at, x);
    }
};

// Blocks at..at + width of R parities. constants: R for each of k data blocks. plain: those of the first parity and of
// the first data block are all one.
template <int R, int width, bool plain, class Access>
[[gnu::always_inline]] inline void encode_blocks(Access access, std::size_t at, int k, const Constant* constants,
                                                 const std::uint8_t* const* data, std::uint8_t* const* parity) {
    constexpr int first_product = plain ? 1 : 0;
    Bytes sum[R][width];
    const auto take = [&](int j, auto put) __attribute__((always_inline)) {
        Bytes x[width];
        for (int w = 0; w < width; ++w) x[w] = access.load(data[j] + at + w * block);
        if (plain) {
            for (int w = 0; w < width; ++w) put(sum[0][w], x[w]);
        }
        if (R == first_product) return;
        Operand factor[width];
        for (int w = 0; w < width; ++w) factor[w] = operand(x[w]);
        for (int i = first_product; i < R; ++i) {
            const Multiplier multiply(constants[j * R + i]);
            for (int w = 0; w < width; ++w) put(sum[i][w], multiply(factor[w]));
        }
    };
    if (plain) {
        for (int w = 0; w < width; ++w) {
            const Bytes x = access.load(data[0] + at + w * block);
            for (int i = 0; i < R; ++i) sum[i][w] = x;
        }
    } else {
        take(0, [](Bytes& to, Bytes product) { to = product; });
    }
    for (int j = 1; j < k; ++j) take(j, [](Bytes& to, Bytes product) { to ^= product; });
    for (int i = 0; i < R; ++i) {
        for (int w = 0; w < width; ++w) access.store(parity[i] + at + w * block, sum[i][w]);
    }
}

// As many blocks at once as the registers hold, `wanted` at most.
constexpr int fitting_width(int parities, int wanted) {
    while (wanted > 1 && (parities + operand_registers) * wanted + 3 > registers) wanted /= 2;
    return wanted;
}

// From `at` on in steps of `width` blocks; where it stopped.
template <int R, int width, bool plain, class Access>
std::size_t encode_run(Access access, std::size_t at, std::size_t bytes, int k, const Constant* constants,
                       const std::uint8_t* const* data, std::uint8_t* const* parity) {
    for (; at + width * block <= bytes; at += width * block) {
        encode_blocks<R, width, plain>(access, at, k, constants, data, parity);
    }
    return at;
}

// Bytes from the first parity to its next block boundary; `block` if the parities do not all have the same.
template <int R>
std::size_t bytes_to_boundary(std::uint8_t* const* parity) {
    const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(parity[0]);
    for (int i = 1; i < R; ++i) {
        if ((reinterpret_cast<std::uintptr_t>(parity[i]) - first) % block != 0) return block;
    }
    return -first % block;
}

template <int R, bool plain>
void encode_rows(std::size_t bytes, int k, const Coefficient* coefficients, const std::uint8_t* const* data,
                 std::uint8_t* const* parity, std::size_t bytes_of_all) {
    // Measured on Zen 5. In the first-level cache the products are the limit, and four blocks of each source share
    // one load of a constant; further away, longer bursts from one source only disturb the CPU's own prefetching.
    // On Intel they do not, and lines of few parities that are written are better asked for (bench/LIMITS.md, "A fourth
    // machine").
    constexpr bool is_measured_on_intel = block == 64 && operand_registers == 1;
    constexpr std::size_t near_bytes_max = 32 << 10;
    constexpr int near_width = fitting_width(R, 4);
    constexpr int far_width = fitting_width(R, R <= 2 && operand_registers == 1 ? 1 : 2);
    // What does not fit into the last-level cache is not written there: that would first read it from memory. The
    // CPU's own prefetching lets go of many sources that lie at the same place in their pages, and is better with few;
    // Intel's is not.
    constexpr std::size_t stream_bytes_min = 32 << 20;
    constexpr int stream_width = fitting_width(R, 2);
    constexpr int followed_sources_max = 3;

    Constant constants[R * coefficients_max];
    for (int j = 0; j < k; ++j) {
        for (int i = 0; i < R; ++i) constants[j * R + i] = constant(coefficients[i * k + j]);
    }
    const Whole whole;
    if (bytes < block) {
        encode_blocks<R, 1, plain>(Part(bytes), 0, k, constants, data, parity);
        return;
    }
    std::size_t at = 0;
    if (bytes_of_all <= near_bytes_max) {
        at = encode_run<R, near_width, plain>(whole, at, bytes, k, constants, data, parity);
    } else if (const std::size_t head = bytes_to_boundary<R>(parity);
               has_stream && bytes_of_all >= stream_bytes_min && head != block) {
        encode_blocks<R, 1, plain>(whole, 0, k, constants, data, parity);
        if (k <= followed_sources_max && prefetch_into == PrefetchInto::first_level) {
            at = encode_run<R, stream_width, plain>(Streamed<false>(), head, bytes, k, constants, data, parity);
        } else {
            at = encode_run<R, stream_width, plain>(Streamed<true>(), head, bytes, k, constants, data, parity);
        }
        fence();
    } else if (is_measured_on_intel && prefetch_into == PrefetchInto::second_level) {
        if (R <= 2) {
            at = encode_run<R, near_width, plain>(AskingNext<R == 2>(), at, bytes, k, constants, data, parity);
        } else {
            at = encode_run<R, near_width, plain>(whole, at, bytes, k, constants, data, parity);
        }
    } else {
        at = encode_run<R, far_width, plain>(whole, at, bytes, k, constants, data, parity);
    }
    at = encode_run<R, 1, plain>(whole, at, bytes, k, constants, data, parity);
    if (at < bytes) encode_blocks<R, 1, plain>(whole, bytes - block, k, constants, data, parity);
}

// The rows of a code, and what restores one block from the first parity, are plain: their products need no instruction.
bool is_plain(int k, int parities, const Coefficient* coefficients) {
    for (int j = 0; j < k; ++j) {
        if (coefficients[j].value != 1) return false;
    }
    for (int i = 1; i < parities; ++i) {
        if (coefficients[i * k].value != 1) return false;
    }
    return true;
}

template <int R>
void encode_rows_of(std::size_t bytes, int k, const Coefficient* coefficients, const std::uint8_t* const* data,
                    std::uint8_t* const* parity) {
    const std::size_t all = bytes * static_cast<std::size_t>(k + R);
    if (is_plain(k, R, coefficients)) {
        encode_rows<R, true>(bytes, k, coefficients, data, parity, all);
    } else {
        encode_rows<R, false>(bytes, k, coefficients, data, parity, all);
    }
}

void encode(std::size_t bytes, int k, int r, const Coefficient* coefficients, const std::uint8_t* const* data,
            std::uint8_t* const* parity) {
    if (bytes == 0) return;
    for (int i = 0; i < r; i += 4) {
        const Coefficient* rows = coefficients + static_cast<std::size_t>(i) * k;
        switch (r - i) {
            case 1: encode_rows_of<1>(bytes, k, rows, data, parity + i); break;
            case 2: encode_rows_of<2>(bytes, k, rows, data, parity + i); break;
            case 3: encode_rows_of<3>(bytes, k, rows, data, parity + i); break;
            default: encode_rows_of<4>(bytes, k, rows, data, parity + i); break;
        }
    }
}

bool is_zero(std::size_t bytes, const std::uint8_t* data) {
    if (bytes < block) return bytes == 0 || all_zero(Part(bytes).load(data));
    const Whole whole;
    for (std::size_t i = 0; i + block < bytes; i += block) {
        if (!all_zero(whole.load(data + i))) return false;
    }
    return all_zero(whole.load(data + bytes - block));
}
