// Where a push's deltas are written: into the windows of the peers that keep the parity of its rows.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.hpp"
#include "store/table.hpp"
#include "store/tuning.hpp"
#include "store/window.hpp"

namespace ecrec {

// For each section begin(), for each run of its rows place(), the steps, finish().
class Deltas {
public:
    static constexpr std::size_t run_max = Tuning::run_rows_threads_limit;

    // beside: memory for deltas that are copied where they go when they are complete.
    Deltas(Window* window, const ShardPlace& place, Growing<std::uint8_t>& beside)
        : window_(window), place_(place), beside_(beside) {}

    void begin(const Table& table, std::uint64_t table_index);
    // Somebody takes deltas of this table. Else place() and finish() are not called.
    bool any() const { return !targets_.empty(); }
    // Makes deltas() and merges() of these rows, run_max at most.
    void place(std::span<const RowPlace> rows);
    std::uint8_t* const* deltas() const { return deltas_.data(); }
    const bool* merges() const { return merges_.data(); }
    // See Steps::streams.
    bool streams() const { return streams_; }
    // After the steps.
    void finish();

private:
    struct Target {
        std::size_t peer;
        std::uint64_t limit;  // of quotients
    };
    // Rows of a run whose deltas go to a peer.
    struct Members {
        std::vector<std::uint64_t> keys;
        std::vector<std::size_t> numbers;
    };
    struct Copy {
        const std::uint8_t* delta;
        std::uint8_t* target;
        bool merges;
    };

    std::uint64_t key_of(const RowPlace& row) const {
        return table_index_ << stripe_bits | table_->stripe_at(row.quotient, static_cast<int>(row.residue));
    }
    void append(std::span<const RowPlace> rows);
    void look_up(std::span<const RowPlace> rows);

    Window* window_;
    const ShardPlace& place_;
    Growing<std::uint8_t>& beside_;
    const std::size_t streamed_bytes_min_ = tuning.streamed_bytes_min;
    const Table* table_ = nullptr;
    std::uint64_t table_index_ = 0;
    // Those of class c are the targets first_target_[c] to first_target_[c + 1].
    std::vector<Target> targets_;
    std::array<std::size_t, shards_max + 1> first_target_{};
    bool appends_ = false;
    bool streams_ = false;
    std::array<std::uint8_t*, run_max> deltas_;
    std::array<bool, run_max> merges_{};
    std::array<Members, shards_max> members_;  // of each peer
    std::vector<Copy> copies_;
};

}  // namespace ecrec
