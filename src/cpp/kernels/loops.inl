// The loops of every SIMD kernel, written once. A kernel's file includes this within its own anonymous namespace and
// target region: a function that two instruction sets shared would be compiled for one of them only, the linker's
// choice. For the same reason there is no inline function of the standard library in here but std::memcpy.
//
// Before it the file defines
//   block, and by vectors.inl the vector types
//   registers                          how many vectors the CPU can name
//   Part(bytes), PartLanes(bytes)      access to fewer bytes (PartLanes: whole floats) than a block
//   void stream(at, Bytes)             store past the caches, `at` aligned to a block; has_stream, void fence()
//   LineStream                         the same to where no block begins; has_line_stream
//   bool all_zero(Bytes)
//   Floats square_root(Floats)
//   float sum_of_lanes(Floats)         lanes added pairwise: halves, then their halves
//   Constant, constant(c)              what a loop keeps of a coefficient
//   Operand, operand(Bytes)            what is computed once from a source, whatever it is multiplied by
//   operand_registers
//   Multiplier(Constant)(Operand)      the product

// ------------------------------------------------------------------ bytes

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
    write_blocks(bytes, target,
                 [&](auto access, std::size_t i) { return access.load(a + i) ^ access.load(b + i); });
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
[[gnu::always_inline]] inline void fold_by(const Multiply& multiply, std::size_t bytes, const std::uint8_t* source, std::uint8_t* target) {
    write_blocks(bytes, target, [&](auto access, std::size_t i) {
        return access.load(target + i) ^ multiply(access.load(source + i));
    });
}

void fold(std::size_t bytes, const Coefficient& c, const std::uint8_t* source, std::uint8_t* target) {
    with_product(c, [&](auto multiply) __attribute__((always_inline)) { fold_by(multiply, bytes, source, target); });
}

// One row of `blocks` whole blocks, four at a time: all are loaded before the first is stored, so that misses overlap.
template <int blocks, class Multiply>
[[gnu::always_inline]] inline void fold_blocks(const Multiply& multiply, const std::uint8_t* source, std::uint8_t* target) {
    const Whole whole;
    constexpr int width = blocks < 4 ? blocks : 4;
    static_assert(blocks % width == 0);
    for (int first = 0; first < blocks; first += width) {
        Bytes next[width];
        for (int w = 0; w < width; ++w) {
            const std::size_t i = static_cast<std::size_t>(first + w) * block;
            next[w] = whole.load(target + i) ^ multiply(whole.load(source + i));
        }
        for (int w = 0; w < width; ++w) whole.store(target + static_cast<std::size_t>(first + w) * block, next[w]);
    }
}

// On the way to the second-level cache. Rows that are only read, and short ones in steps: many. Long ones that are
// written, too, take a fifth longer from 16 on, however long they are, and 4 to 14 are the same; folds of short ones are
// the same with any (measured: bench/LIMITS.md, "A fourth machine").
constexpr std::size_t few_far_rows = 12, many_far_rows = 64;

// Rows that may lie anywhere, asked for before their turn: of each the lines of its first `asked` bytes; what follows
// is in order, and the CPU fetches it by itself. near_bytes: what is on its way to the first-level cache at a time;
// far_rows: so many are asked for ahead where they go to the second.
template <bool writes>
struct RowsAhead {
    RowsAhead(std::size_t bytes, std::size_t near_bytes, std::size_t far_rows)
        : far(prefetch_into == PrefetchInto::second_level), asked(bytes < asked_max ? bytes : asked_max) {
        const std::size_t near_rows = bytes >= near_bytes / 8 ? 8 : near_bytes / (bytes < 256 ? 256 : bytes);
        rows = far ? far_rows : near_rows;
    }

    void ask_for(const void* row) const {
        // The last byte is asked for whether its line was or not: how many lines a row touches that starts anywhere in
        // one, no CPU can predict.
        ask_for_next(row, 0);
        ask(reinterpret_cast<std::uintptr_t>(row) + asked - 1);
    }

    // Of rows that follow each other the one `distance` bytes on: the line of its last byte is the next row's to ask for.
    // They may end before it; a prefetch beyond does not fault.
    void ask_for_next(const void* row, std::size_t distance) const {
        const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(row) + distance;
        for (std::size_t i = 0; i < asked; i += 64) ask(first + i);
    }

    void ask(std::uintptr_t address) const {
        const void* at = reinterpret_cast<const void*>(address);
        if (far) {
            __builtin_prefetch(at, 0, 2);
        } else {
            __builtin_prefetch(at, writes);
        }
    }

    static constexpr std::size_t asked_max = 2048;
    bool far;
    std::size_t asked;
    std::size_t rows;  // so many ahead
};

template <class Fold>
[[gnu::always_inline]] inline void for_rows(std::size_t rows, std::size_t bytes, const std::uint8_t* const* source,
                                            std::uint8_t* const* target, Fold fold) {
    const RowsAhead<true> targets(bytes, 8192, few_far_rows);
    const RowsAhead<false> sources(bytes, 8192, few_far_rows);
    // With longer rows the source, too, outruns what the CPU fetches by itself.
    const bool asks_for_sources = sources.far || bytes >= 512;
    const std::size_t ahead = targets.rows;
    for (std::size_t m = 0; m < rows; ++m) {
        if (m + ahead < rows) {
            targets.ask_for(target[m + ahead]);
            if (asks_for_sources) sources.ask_for(source[m + ahead]);
        }
        fold(source[m], target[m]);
    }
}

void fold_rows(std::size_t rows, std::size_t bytes, const Coefficient& c, const std::uint8_t* const* source,
               std::uint8_t* const* target) {
    using Source = const std::uint8_t*;
    using Target = std::uint8_t*;
    const auto fold_all = [&](auto fold) __attribute__((always_inline)) {
        for_rows(rows, bytes, source, target, fold);
    };
    with_product(c, [&](auto multiply) __attribute__((always_inline)) {
        // The lengths of records whose floats are a power of two, without a tail.
        if (bytes == 4 * block) {
            fold_all([&](Source x, Target y) __attribute__((always_inline)) { fold_blocks<4>(multiply, x, y); });
        } else if (bytes == 8 * block) {
            fold_all([&](Source x, Target y) __attribute__((always_inline)) { fold_blocks<8>(multiply, x, y); });
        } else if (bytes == 16 * block) {
            fold_all([&](Source x, Target y) __attribute__((always_inline)) { fold_blocks<16>(multiply, x, y); });
        } else {
            fold_all([&](Source x, Target y) __attribute__((always_inline)) { fold_by(multiply, bytes, x, y); });
        }
    });
}

template <int blocks>
[[gnu::always_inline]] inline void copy_blocks(const std::uint8_t* from, std::uint8_t* to) {
    const Whole whole;
    for (int w = 0; w < blocks; ++w) whole.store(to + w * block, whole.load(from + w * block));
}

void copy_rows(std::size_t rows, std::size_t bytes, const std::uint8_t* const* source, std::uint8_t* target,
               std::size_t later, bool continues) {
    using From = const std::uint8_t*;
    using To = std::uint8_t*;
    const auto copy_all = [&](std::size_t size, auto copy) __attribute__((always_inline)) {
        const RowsAhead<false> sources(size, 12288, many_far_rows);
        const std::size_t ahead = sources.rows, known = rows + later;
        // With shorter rows the CPU's own prefetching of the target keeps up.
        const bool asks_for_target = sources.far && size > 256;
        const auto prefetch = [&](std::size_t m) __attribute__((always_inline)) {
            if (m < known && source[m] != nullptr) sources.ask_for(source[m]);
        };
        for (std::size_t m = 0; !continues && m < ahead; ++m) prefetch(m);
        for (std::size_t m = 0; m < rows; ++m) {
            prefetch(m + ahead);
            if (asks_for_target) sources.ask_for_next(target + m * size, ahead * size);
            if (source[m] != nullptr) copy(source[m], target + m * size);
        }
    };
    // The lengths of weights whose floats are a power of two, as constants.
    if (bytes == 4 * block) {
        copy_all(4 * block, [](From from, To to) __attribute__((always_inline)) { copy_blocks<4>(from, to); });
    } else if (bytes == 8 * block) {
        copy_all(8 * block, [](From from, To to) __attribute__((always_inline)) { copy_blocks<8>(from, to); });
    } else if (bytes == 16 * block) {
        copy_all(16 * block, [](From from, To to) __attribute__((always_inline)) { copy_blocks<16>(from, to); });
    } else {
        copy_all(bytes, [&](From from, To to) __attribute__((always_inline)) {
            write_blocks(bytes, to, [&](auto access, std::size_t i) __attribute__((always_inline)) {
                return access.load(from + i);
            });
        });
    }
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

// Within the caches: ask for the next blocks of parities, and of the data too where `both`. A prefetch beyond the end does
// not fault.
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

// Blocks at..at + width of R parities. constants: R for each of k data blocks. plain: those of the first parity and of the
// first data block are all one.
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

// ------------------------------------------------------------------ floats

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

// Blocks at..at + width of one bag's sum, in registers.
template <int width, class Access>
[[gnu::always_inline]] inline void pool_blocks(Access access, std::size_t at, std::size_t rows, const float* const* source, float* target) {
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
            for_lanes(dim, [&](auto access, std::size_t i) __attribute__((always_inline)) {
                store_floats(access, target[m] + i, Floats{});
            });
            continue;
        }
        std::size_t i = 0;
        for (; i + 4 * lanes <= dim; i += 4 * lanes) pool_blocks<4>(Whole(), i, rows, source + first, target[m]);
        for (; i + lanes <= dim; i += lanes) pool_blocks<1>(Whole(), i, rows, source + first, target[m]);
        if (i < dim) pool_blocks<1>(PartLanes((dim - i) * sizeof(float)), i, rows, source + first, target[m]);
        first = ends[m];
    }
}

// Where the bits that an optimizer changes go: nowhere, or into a record of them.
struct NoDelta {
    template <class Access>
    void take(Access, std::size_t, Bytes) const {}
    void take_one(std::size_t, std::uint32_t) const {}
};
struct Delta {
    // merges: with what is there; else it is overwritten, and read from zeros, which are near: memory may be far.
    Delta(std::uint8_t* to, bool merges)
        : bytes(to), before(merges ? to : zeros), reach(merges ? ~std::size_t{0} : 0) {}

    template <class Access>
    void take(Access access, std::size_t index, Bytes changed) const {
        access.store(bytes + 4 * index, access.load(before + (4 * index & reach)) ^ changed);
    }
    void take_one(std::size_t index, std::uint32_t changed) const {
        std::uint32_t bits;
        std::memcpy(&bits, before + (4 * index & reach), 4);
        bits ^= changed;
        std::memcpy(bytes + 4 * index, &bits, 4);
    }

    alignas(block) static constexpr std::uint8_t zeros[block] = {};
    std::uint8_t* bytes;
    const std::uint8_t* before;
    std::size_t reach;
};

// One that is only written, in whole blocks, past the caches.
struct StreamedDelta {
    explicit StreamedDelta(std::uint8_t* to) : bytes(to) {}

    void take(Whole, std::size_t index, Bytes changed) const { stream(bytes + 4 * index, changed); }
    void take(PartLanes access, std::size_t index, Bytes changed) const { access.store(bytes + 4 * index, changed); }
    void take_one(std::size_t index, std::uint32_t changed) const { std::memcpy(bytes + 4 * index, &changed, 4); }

    std::uint8_t* bytes;
};

// The same for blocks, in order, then one float, with zeros up to 16 bytes, that begin at a multiple of 16 bytes.
struct LineDelta {
    explicit LineDelta(std::uint8_t* to) : lines(to) {}

    void take(Whole, std::size_t index, Bytes changed) {
        if (index == 0) {
            lines.first(changed);
        } else {
            lines.next(changed);
        }
    }
    void take(PartLanes, std::size_t, Bytes) const {}  // there is none
    void take_one(std::size_t, std::uint32_t changed) {
        const Words last = {changed};
        lines.last(reinterpret_cast<Bytes>(last));
    }

    LineStream lines;
};

// record[index..] = next.
template <class Access, class D>
[[gnu::always_inline]] inline void replace(Access access, float* record, std::size_t index, Floats old, Floats next, D& delta) {
    delta.take(access, index, reinterpret_cast<Bytes>(old) ^ reinterpret_cast<Bytes>(next));
    store_floats(access, record + index, next);
}

// The same for a single float.
template <class D>
[[gnu::always_inline]] inline void replace_one(float* record, std::size_t index, float next, D& delta) {
    std::uint32_t old_bits, next_bits;
    std::memcpy(&old_bits, record + index, 4);
    std::memcpy(&next_bits, &next, 4);
    delta.take_one(index, old_bits ^ next_bits);
    record[index] = next;
}

// step(dim, gradient, record, delta, m) for each row m, with later records on their way. Streamed: what is past the caches.
template <class Streamed, class Step>
[[gnu::always_inline]] inline void for_steps_of(std::size_t dim, const Steps& steps, Step step) {
    const std::size_t bytes = steps.record_bytes;
    const std::size_t far_rows = bytes < 768 ? many_far_rows : few_far_rows;
    const RowsAhead<true> records(bytes, 8192, far_rows);
    const RowsAhead<false> gradients(dim * sizeof(float), 8192, far_rows);
    const std::size_t ahead = records.rows;
    const std::size_t padding = bytes - steps.used_bytes;
    const std::size_t known = steps.rows + steps.later;
    const auto prefetch = [&](std::size_t m) __attribute__((always_inline)) {
        if (m < known) records.ask_for(steps.records[m]);
    };
    // Gradients and new deltas lie one behind the other: near ones need not be asked for.
    const auto prefetch_far = [&](std::size_t m, bool delta) __attribute__((always_inline)) {
        if (!records.far || m >= steps.rows) return;
        gradients.ask_for(steps.gradients[m]);
        if (delta) records.ask_for(steps.deltas[m]);
    };
    for (std::size_t m = 0; !steps.continues && m < ahead; ++m) prefetch(m);
    if (steps.deltas == nullptr) {
        for (std::size_t m = 0; m < steps.rows; ++m) {
            prefetch(m + ahead);
            prefetch_far(m + ahead, false);
            NoDelta none;
            step(dim, steps.gradients[m], steps.records[m], none, m);
        }
        return;
    }
    if (has_stream && steps.streams) {
        for (std::size_t m = 0; m < steps.rows; ++m) {
            prefetch(m + ahead);
            prefetch_far(m + ahead, false);
            Streamed delta(steps.deltas[m]);
            step(dim, steps.gradients[m], steps.records[m], delta, m);
        }
        fence();
        return;
    }
    for (std::size_t m = 0; m < steps.rows; ++m) {
        prefetch(m + ahead);
        prefetch_far(m + ahead, true);
        Delta delta(steps.deltas[m], steps.merges[m]);
        step(dim, steps.gradients[m], steps.records[m], delta, m);
        const std::uint32_t zeros[3] = {};
        if (padding > 0) std::memcpy(steps.deltas[m] + bytes - 4, zeros, 4);
        if (padding > 4) std::memcpy(steps.deltas[m] + bytes - 8, zeros, 4);
        if (padding > 8) std::memcpy(steps.deltas[m] + bytes - 12, zeros, 4);
    }
}

template <class Streamed = StreamedDelta, class Step>
[[gnu::always_inline]] inline void for_steps(const Steps& steps, Step step) {
    with_length(steps.dim, [&](std::size_t dim) __attribute__((always_inline)) {
        for_steps_of<Streamed>(dim, steps, step);
    });
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

// record[i] -= step * gradient[i]
template <class D>
[[gnu::always_inline]] inline void descend(std::size_t dim, float step, const float* gradient, float* record, D& delta) {
    for_lanes(dim, [&](auto access, std::size_t i) __attribute__((always_inline)) {
        const Floats old = load_floats(access, record + i);
        replace(access, record, i, old, old - step * load_floats(access, gradient + i), delta);
    });
}

void sgd(const Steps& steps) {
    const float learning_rate = steps.hyper[0];
    for_steps(steps, [&](std::size_t dim, const float* gradient, float* record, auto& delta,
                         std::size_t) __attribute__((always_inline)) {
        descend(dim, learning_rate, gradient, record, delta);
    });
}

template <bool look_ahead>
[[gnu::always_inline]] inline void descend_with_momentum(const Steps& steps) {
    const float learning_rate = steps.hyper[0], momentum = steps.hyper[1];
    for_steps(steps, [&](std::size_t dim, const float* gradient, float* record, auto& delta,
                         std::size_t) __attribute__((always_inline)) {
        for_lanes(dim, [&](auto access, std::size_t i) __attribute__((always_inline)) {
            const Floats g = load_floats(access, gradient + i);
            const Floats old_buffer = load_floats(access, record + dim + i);
            const Floats buffer = momentum * old_buffer + g;
            const Floats old = load_floats(access, record + i);
            Floats direction = buffer;
            if (look_ahead) direction = g + momentum * buffer;
            replace(access, record, dim + i, old_buffer, buffer, delta);
            replace(access, record, i, old, old - learning_rate * direction, delta);
        });
    });
}

void momentum(const Steps& steps) { descend_with_momentum<false>(steps); }
void nesterov(const Steps& steps) { descend_with_momentum<true>(steps); }

void adagrad(const Steps& steps) {
    const float learning_rate = steps.hyper[0], eps = steps.hyper[1];
    for_steps(steps, [&](std::size_t dim, const float* gradient, float* record, auto& delta,
                         std::size_t) __attribute__((always_inline)) {
        for_lanes(dim, [&](auto access, std::size_t i) __attribute__((always_inline)) {
            const Floats g = load_floats(access, gradient + i);
            const Floats old_sum = load_floats(access, record + dim + i);
            const Floats sum = old_sum + g * g;
            const Floats old = load_floats(access, record + i);
            const Floats next = old - learning_rate * g / (square_root(sum) + eps);
            replace(access, record, dim + i, old_sum, sum, delta);
            replace(access, record, i, old, next, delta);
        });
    });
}

// In sixteen lanes, whatever the width of a vector: see rowwise_adagrad of the scalar kernel.
[[gnu::always_inline]] inline float sum_of_squares(std::size_t count, const float* values) {
    constexpr std::size_t parts = 16 / lanes;
    Floats sums[parts] = {};
    const auto take = [&](auto access, std::size_t part, std::size_t i) __attribute__((always_inline)) {
        const Floats x = load_floats(access, values + i);
        sums[part] += x * x;
    };
    std::size_t i = 0;
    for (; i + 16 <= count; i += 16) {
        for (std::size_t part = 0; part < parts; ++part) take(Whole(), part, i + part * lanes);
    }
    for (std::size_t part = 0; part < parts; ++part, i += lanes) {
        if (i + lanes <= count) {
            take(Whole(), part, i);
        } else if (i < count) {
            take(PartLanes((count - i) * sizeof(float)), part, i);
        }
    }
    for (std::size_t half = parts / 2; half != 0; half /= 2) {
        for (std::size_t other = 0; other < half; ++other) sums[other] += sums[other + half];
    }
    return sum_of_lanes(sums[0]);
}

void rowwise_adagrad(const Steps& wanted) {
    Steps steps = wanted;
    steps.streams = wanted.streams && has_line_stream;
    const float learning_rate = steps.hyper[0], eps = steps.hyper[1];
    for_steps<LineDelta>(steps, [&](std::size_t dim, const float* gradient, float* record, auto& delta,
                         std::size_t) __attribute__((always_inline)) {
        const float moment = record[dim] + sum_of_squares(dim, gradient) / static_cast<float>(dim);
        descend(dim, learning_rate / (__builtin_sqrtf(moment) + eps), gradient, record, delta);
        replace_one(record, dim, moment, delta);
    });
}

void adam(const Steps& steps) {
    const float rate_1 = steps.hyper[1], rate_2 = steps.hyper[2], eps = steps.hyper[3];
    for_steps(steps, [&](std::size_t dim, const float* gradient, float* record, auto& delta,
                         std::size_t row) __attribute__((always_inline)) {
        const float step = steps.step_sizes[row];
        for_lanes(dim, [&](auto access, std::size_t i) __attribute__((always_inline)) {
            const Floats g = load_floats(access, gradient + i);
            const Floats old_m = load_floats(access, record + dim + i);
            const Floats old_v = load_floats(access, record + 2 * dim + i);
            const Floats m = old_m + (g - old_m) * rate_1;
            const Floats v = old_v + (g * g - old_v) * rate_2;
            const Floats old = load_floats(access, record + i);
            const Floats next = old - step * (m / (square_root(v) + eps));
            replace(access, record, dim + i, old_m, m, delta);
            replace(access, record, 2 * dim + i, old_v, v, delta);
            replace(access, record, i, old, next, delta);
        });
    });
}

void ftrl(const Steps& steps) {
    const float learning_rate = steps.hyper[0], beta = steps.hyper[1], l1 = steps.hyper[2], l2 = steps.hyper[3];
    for_steps(steps, [&](std::size_t dim, const float* gradient, float* record, auto& delta,
                         std::size_t) __attribute__((always_inline)) {
        for_lanes(dim, [&](auto access, std::size_t i) __attribute__((always_inline)) {
            const Floats g = load_floats(access, gradient + i);
            const Floats old_n = load_floats(access, record + dim + i);
            const Floats old_z = load_floats(access, record + 2 * dim + i);
            const Floats old = load_floats(access, record + i);
            const Floats n = old_n + g * g;
            const Floats root = square_root(n);
            const Floats sigma = (root - square_root(old_n)) / learning_rate;
            const Floats z = old_z + (g - sigma * old);
            const Words z_bits = reinterpret_cast<Words>(z);
            const Floats excess = reinterpret_cast<Floats>(z_bits & 0x7fffffffu) - l1;
            const Floats magnitude = excess / ((beta + root) / learning_rate + l2);
            // Of the opposite sign as z, and zero where z does not exceed l1.
            const Words next = (reinterpret_cast<Words>(magnitude) ^ (~z_bits & 0x80000000u)) &
                               reinterpret_cast<Words>(excess > 0.0f);
            replace(access, record, dim + i, old_n, n, delta);
            replace(access, record, 2 * dim + i, old_z, z, delta);
            replace(access, record, i, old, reinterpret_cast<Floats>(next), delta);
        });
    });
}

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

// ------------------------------------------------------------------ the table

constexpr Operations table_named(const char* name) {
    return {
        name, encode,   fold,     fold_rows, copy_rows, difference,      is_zero, is_finite, sum_rows, pool_rows,
        sgd,  momentum, nesterov, adagrad,   rowwise_adagrad, adam,    ftrl,      initial_uniform,
    };
}
