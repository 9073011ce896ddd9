// The thread pool and everything that it divides, with several threads and several callers: the same bytes as with one
// thread. The thread sanitizer sees every access (preset tsan).
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "batch/pooling.hpp"
#include "codec/code.hpp"
#include "store/capture.hpp"
#include "store/store.hpp"
#include "store/window.hpp"
#include "threads/pool.hpp"

namespace {

using Bytes = std::vector<std::uint8_t>;
namespace threads = ecrec::threads;

int failures = 0;

void check(bool good, const char* what) {
    if (good) return;
    std::printf("FAILED: %s\n", what);
    if (++failures > 20) std::exit(1);
}

std::vector<float> random_floats(std::size_t count, std::uint32_t seed) {
    std::mt19937 engine(seed);
    std::uniform_real_distribution<float> distribution(-1.0f, 1.0f);
    std::vector<float> values(count);
    for (float& value : values) value = distribution(engine);
    return values;
}

void append(Bytes& all, const void* data, std::size_t bytes) {
    // Not `insert`: GCC 12 for aarch64 sees an overflow in it that cannot be.
    const std::size_t before = all.size();
    all.resize(before + bytes);
    if (bytes != 0) std::memcpy(all.data() + before, data, bytes);
}

// run(caller) on several threads at once, all started by the same flag.
template <class Run>
void at_once(int callers, const Run& run) {
    std::atomic<bool> go{false};
    std::vector<std::thread> all;
    for (int caller = 0; caller < callers; ++caller) {
        all.emplace_back([&, caller] {
            while (!go) std::this_thread::yield();
            run(caller);
        });
    }
    go = true;
    for (std::thread& each : all) each.join();
}

// ------------------------------------------------------------------ the pool
// Each part is done once. What a part wrote is seen by the caller, whose memory it is, without further ado.
void check_parts(int rounds) {
    for (int round = 0; round < rounds; ++round) {
        const std::size_t parts = 1 + static_cast<std::size_t>(round) % static_cast<std::size_t>(threads::in_use());
        std::vector<int> times(parts);
        threads::run_parts(parts, [&](std::size_t part) { ++times[part]; });
        check(std::all_of(times.begin(), times.end(), [](int each) { return each == 1; }), "each part is done once");
    }
}

void check_ranges() {
    for (const std::size_t count : {0, 1, 7, 4096, 100'003}) {
        std::vector<int> times(count);
        threads::for_ranges(count, 16, 8, [&](std::size_t first, std::size_t last) {
            for (std::size_t i = first; i < last; ++i) ++times[i];
        });
        check(std::all_of(times.begin(), times.end(), [](int each) { return each == 1; }), "ranges cover all, once");
    }
}

void check_throwing() {
    const std::size_t parts = static_cast<std::size_t>(threads::in_use());
    for (std::size_t thrower = 0; thrower < parts; ++thrower) {
        std::string caught;
        try {
            threads::run_parts(parts, [&](std::size_t part) {
                if (part == thrower) throw std::runtime_error("part " + std::to_string(part));
            });
        } catch (const std::runtime_error& error) {
            caught = error.what();
        }
        check(caught == "part " + std::to_string(thrower), "what a part throws is thrown by run_parts");
        check_parts(8);  // the pool goes on
    }
}

void check_pool() {
    for (const int count : {1, 2, 4, 3, 1, 4}) {
        threads::use(count);
        check(threads::in_use() == count, "as many threads as were asked for");
        check_parts(200);
        check_ranges();
        check_throwing();
        at_once(3, [](int) { check_parts(200); });
    }
}

// ------------------------------------------------------------------ what it divides
struct Group {
    static constexpr int n = 3;
    std::vector<std::shared_ptr<ecrec::Store>> stores;
    std::vector<std::unique_ptr<ecrec::Window>> windows;

    // 2+1, rows enough that each operation on all of them is divided between four threads.
    Group(const std::string& optimizer, const std::vector<double>& hyper, std::int64_t rows, std::int64_t dim) {
        for (int shard = 0; shard < n; ++shard) {
            stores.push_back(std::make_shared<ecrec::Store>(shard, n, 0, 1));
            stores.back()->add_table({rows, dim, 2, 1, "cauchy", optimizer, hyper, "uniform", 7, 0.01, 0.1, true});
            windows.push_back(std::make_unique<ecrec::Window>(stores.back()));
            for (int peer = 0; peer < n; ++peer) {
                for (int class_id = 0; class_id < n; ++class_id) {
                    windows.back()->set_limit(peer, class_id, ecrec::unlimited);
                }
            }
        }
    }

    std::vector<std::int64_t> rows_of(int shard) const {
        std::vector<std::int64_t> found;
        const ecrec::Table& table = stores[static_cast<std::size_t>(shard)]->table(0);
        ecrec::RowPlace place{};
        for (std::uint64_t row = 0; row < table.shape().rows; ++row) {
            if (table.find(row, place)) found.push_back(static_cast<std::int64_t>(row));
        }
        return found;
    }
};

struct Listed {
    std::int32_t table = 0;
    std::int64_t count = 0;
    std::vector<std::int64_t> rows;

    explicit Listed(std::vector<std::int64_t> all)
        : count(static_cast<std::int64_t>(all.size())), rows(std::move(all)) {}
    ecrec::Sections sections() const { return {{&table, 1}, {&count, 1}, rows}; }
};

// Pushes to one shard, folded by its peers, and everything read back.
Bytes run_store(const std::string& optimizer, const std::vector<double>& hyper, std::uint32_t seed) {
    constexpr std::int64_t dim = 64;
    Group group(optimizer, hyper, 15'000, dim);
    Bytes all;
    for (int shard = 0; shard < Group::n; ++shard) {
        ecrec::Store& store = *group.stores[static_cast<std::size_t>(shard)];
        ecrec::Window& window = *group.windows[static_cast<std::size_t>(shard)];
        Listed listed(group.rows_of(shard));
        std::vector<std::int64_t> again(listed.rows.begin(), listed.rows.begin() + 500);  // some rows twice in a push
        listed.rows.insert(listed.rows.end(), again.begin(), again.end());
        listed.count = static_cast<std::int64_t>(listed.rows.size());
        for (std::uint32_t push = 0; push < 2; ++push) {
            const auto values = random_floats(listed.rows.size() * dim, seed + push);
            store.apply(listed.sections(), values, &window);
        }
        const auto values = random_floats(listed.rows.size() * dim, seed + 9);
        store.assign(listed.sections(), values, &window);
        Bytes out(store.gather_bytes({&listed.table, 1}, {&listed.count, 1}, true));
        store.gather(listed.sections(), true, out);
        append(all, out.data(), out.size());
        for (int peer = 0; peer < Group::n; ++peer) {
            const ecrec::RowsBlob blob = window.buffer(peer).take();
            const std::span<const std::uint64_t> keys(blob.keys.data(), blob.keys.size());
            const std::span<const std::uint8_t> records(blob.records.data(), blob.records.size());
            if (!keys.empty()) group.stores[static_cast<std::size_t>(peer)]->fold(shard, ~0ull, keys, records);
        }
    }
    for (int shard = 0; shard < Group::n; ++shard) {
        for (int class_id = 0; class_id < Group::n; ++class_id) {
            const std::shared_ptr<ecrec::Store>& store = group.stores[static_cast<std::size_t>(shard)];
            if ((shard - class_id + Group::n) % Group::n != 2) continue;  // the slot of the parity
            const ecrec::RowsBlob parity = ecrec::Capture(store, class_id, 0, ~0ull).take();
            append(all, parity.keys.data(), parity.keys.size() * sizeof(std::uint64_t));
            append(all, parity.records.data(), parity.records.size());
        }
    }
    return all;
}

Bytes run_codec(std::uint32_t seed) {
    constexpr std::size_t bytes = 1'000'003;
    std::mt19937_64 engine(seed);
    std::vector<Bytes> blocks(6, Bytes(bytes));
    for (int j = 0; j < 4; ++j) {
        for (auto& byte : blocks[static_cast<std::size_t>(j)]) byte = static_cast<std::uint8_t>(engine());
    }
    const ecrec::Code code(4, 2, ecrec::gf::Generator::cauchy);
    const std::uint8_t* data[] = {blocks[0].data(), blocks[1].data(), blocks[2].data(), blocks[3].data()};
    std::uint8_t* parity[] = {blocks[4].data(), blocks[5].data()};
    code.encode(bytes, data, parity);
    Bytes all;
    for (const Bytes& block : blocks) append(all, block.data(), block.size());
    Bytes lost[] = {Bytes(bytes), Bytes(bytes)};
    const std::uint8_t* present[] = {data[1], data[2], parity[0], parity[1]};
    std::uint8_t* out[] = {lost[0].data(), lost[1].data()};
    const int slots[] = {1, 2, 4, 5}, wanted[] = {0, 3};
    check(code.reconstruct(bytes, slots, present, wanted, out) == ecrec::CodeError::none, "two blocks are decoded");
    check(lost[0] == blocks[0] && lost[1] == blocks[3], "decoded blocks are the lost ones");
    return all;
}

// Four features that share no row, each with bags of some rows.
Bytes run_pooling(std::uint32_t seed) {
    constexpr std::size_t features = 4, batch = 2'000, dim = 64, rows_each = 300;
    std::mt19937 engine(seed);
    std::vector<std::int64_t> value_offsets, bag_offsets{0};
    std::vector<std::int32_t> inverse;
    for (std::size_t row = 0; row <= features * rows_each; ++row) {
        value_offsets.push_back(static_cast<std::int64_t>(row * dim));
    }
    for (std::size_t bag = 0; bag < features * batch; ++bag) {
        for (std::size_t i = engine() % 4; i > 0; --i) {
            inverse.push_back(static_cast<std::int32_t>(bag / batch * rows_each + engine() % rows_each));
        }
        bag_offsets.push_back(static_cast<std::int64_t>(inverse.size()));
    }
    const std::vector<std::int32_t> dims(features, dim);
    const bool mean[features] = {false, true, false, true};
    const auto values = random_floats(features * rows_each * dim, seed);
    const auto given = random_floats(batch * features * dim, seed + 1);
    const ecrec::batch::Bags bags{value_offsets, inverse, bag_offsets, dims, static_cast<std::int64_t>(batch), mean};
    std::vector<float> pooled(batch * features * dim), gradients(values.size());
    ecrec::batch::pool_forward(values, bags, pooled);
    ecrec::batch::pool_backward(given, bags, gradients);
    Bytes all;
    append(all, pooled.data(), pooled.size() * sizeof(float));
    append(all, gradients.data(), gradients.size() * sizeof(float));
    return all;
}

Bytes run_all(int caller) {
    const std::uint32_t seed = 100 * static_cast<std::uint32_t>(caller);
    Bytes all;
    for (const Bytes& part : {run_store("rowwise-adagrad", {0.1, 1e-8}, seed),
                              run_store("adam", {0.1, 0.9, 0.999, 1e-8}, seed), run_codec(seed), run_pooling(seed)}) {
        append(all, part.data(), part.size());
    }
    return all;
}

}  // namespace

int main() {
    check_pool();
    threads::use(1);
    constexpr int callers = 2;
    std::vector<Bytes> expected(callers), found(callers);
    for (int caller = 0; caller < callers; ++caller) expected[static_cast<std::size_t>(caller)] = run_all(caller);
    threads::use(4);
    check(run_all(0) == expected[0], "four threads give the bytes of one");
    // Stores of their own, one pool: one caller is helped, the other does its parts alone.
    at_once(callers, [&](int caller) { found[static_cast<std::size_t>(caller)] = run_all(caller); });
    for (std::size_t caller = 0; caller < callers; ++caller) {
        check(found[caller] == expected[caller], "two callers at once give the bytes of one thread");
    }
    threads::use(1);
    std::printf("%s\n", failures == 0 ? "checked: threads" : "FAILED");
    return failures == 0 ? 0 : 1;
}
