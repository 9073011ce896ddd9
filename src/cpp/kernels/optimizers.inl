// The steps of the optimizers, with the bits that they change: step<"NAME"> of each entry of optimizers.hpp. One body for
// all kernels: a part of loops.inl, and of the scalar kernel.

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

// A delta that is only written: whole blocks, with non-temporal stores.
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
[[gnu::always_inline]] inline void replace(Access access, float* record, std::size_t index, Floats old, Floats next,
                                           D& delta) {
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

// step(dim, gradient, record, delta, m) for each row m, with later records on their way. Streamed: the delta that is
// written with non-temporal stores.
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

// record[i] -= step * gradient[i]
template <class D>
[[gnu::always_inline]] inline void descend(std::size_t dim, float step, const float* gradient, float* record,
                                           D& delta) {
    for_lanes(dim, [&](auto access, std::size_t i) __attribute__((always_inline)) {
        const Floats old = load_floats(access, record + i);
        replace(access, record, i, old, old - step * load_floats(access, gradient + i), delta);
    });
}

template <OptimizerName name>
void step(const Steps& steps) = delete;  // of this name there is none yet

// w -= learning_rate * g
template <>
void step<"sgd">(const Steps& steps) {
    const float learning_rate = steps.hyper[0];
    for_steps(steps, [&](std::size_t dim, const float* gradient, float* record, auto& delta,
                         std::size_t) __attribute__((always_inline)) {
        descend(dim, learning_rate, gradient, record, delta);
    });
}

// b = momentum * b + g; w -= learning_rate * b, or of Nesterov learning_rate * (g + momentum * b), as torch's. State: b.
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

template <>
void step<"momentum">(const Steps& steps) { descend_with_momentum<false>(steps); }
template <>
void step<"nesterov">(const Steps& steps) { descend_with_momentum<true>(steps); }

// s += g * g; w -= learning_rate * g / (sqrt(s) + eps), as torch's. State: s.
template <>
void step<"adagrad">(const Steps& steps) {
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

// In sixteen lanes, whatever the width of a vector, which are then added pairwise: 8, 4, 2, 1.
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

// s += mean of g * g; w -= learning_rate / (sqrt(s) + eps) * g, as FBGEMM's. State: one s of the row.
template <>
void step<"rowwise-adagrad">(const Steps& wanted) {
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

// m += (g - m) * rate_1; v += (g * g - v) * rate_2; w -= step * (m / (sqrt(v) + eps)), as torch's SparseAdam. A rate is
// 1 - beta; step is the learning rate with the corrections of bias. State: m, v; what stands behind them is the store's.
template <>
void step<"adam">(const Steps& steps) {
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

// v += (g * g - v) * rate; w -= learning_rate * (g / (sqrt(v) + eps)), as torch's without momentum, not centered. The rate is
// 1 - alpha. State: v.
template <>
void step<"rmsprop">(const Steps& steps) {
    const float learning_rate = steps.hyper[0], rate = steps.hyper[1], eps = steps.hyper[2];
    for_steps(steps, [&](std::size_t dim, const float* gradient, float* record, auto& delta,
                         std::size_t) __attribute__((always_inline)) {
        for_lanes(dim, [&](auto access, std::size_t i) __attribute__((always_inline)) {
            const Floats g = load_floats(access, gradient + i);
            const Floats old_v = load_floats(access, record + dim + i);
            const Floats v = old_v + (g * g - old_v) * rate;
            const Floats old = load_floats(access, record + i);
            const Floats next = old - learning_rate * (g / (square_root(v) + eps));
            replace(access, record, dim + i, old_v, v, delta);
            replace(access, record, i, old, next, delta);
        });
    });
}

// n' = n + g * g; z += g - (sqrt(n') - sqrt(n)) / learning_rate * w; w = 0 if |z| <= l1, else
// -sign(z) * (|z| - l1) / ((beta + sqrt(n')) / learning_rate + l2): FTRL-Proximal (McMahan et al. 2013, algorithm 1).
// State: n, z.
template <>
void step<"ftrl">(const Steps& steps) {
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

template <std::size_t... index>
constexpr std::array<void (*)(const Steps&), optimizer_count> steps_of(std::index_sequence<index...>) {
    return {step<optimizers[index].name>...};
}
constexpr auto all_steps = steps_of(std::make_index_sequence<optimizer_count>());
