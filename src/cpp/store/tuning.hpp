// Thresholds that decide how something is done, and never what comes out of it.
//
// Each is a knob, so that tests and the simulator reach with a few rows what a server reaches with millions. They are
// of the whole process and are read once a call; they may be set while no other call runs.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ecrec {

using Knob = std::atomic<std::size_t>;

struct Tuning {
    // Largest values, which arrays or the width of a number bound.
    static constexpr std::size_t run_rows_limit = 256, run_rows_threads_limit = 4096, gather_run_rows_limit = 512;
    static constexpr std::size_t buffer_rows_limit = (std::size_t{1} << 31) - 1;
    static constexpr std::size_t buffer_bytes_limit = std::size_t{16} << 32;

    // KeyIndex: slots to begin with, and by how much they grow at least; both powers of two. Values that tell new slots
    // from old ones are the first one of a new index and up, and begin again after so many.
    Knob index_slots_min{64}, index_growth{2}, index_values_first{1}, index_values_max{buffer_rows_limit};
    // RowBuffer: rows are looked up while at least one in so many was there; how many rows a window must have to be
    // judged; how many windows then go by without a look.
    Knob lookup_found_one_in{8}, lookup_judged_rows_min{16}, lookup_windows_between{15};
    // RowBuffer: rows and bytes that fit, by the width of their numbers.
    Knob buffer_rows_max{buffer_rows_limit}, buffer_bytes_max{buffer_bytes_limit};
    // Deltas: a run with fewer bytes of deltas may stay in the caches until it is sent.
    Knob streamed_bytes_min{std::size_t{16} << 10};
    // Store::update: rows of a run with one thread and with several, and bytes of their records. No call pauses in a run.
    Knob run_rows{run_rows_limit}, run_rows_threads{run_rows_threads_limit}, run_bytes_max{std::size_t{2} << 20};
    // Store::fold: rows that are prefetched together, and that several threads divide.
    Knob fold_batch_rows{64}, fold_batch_rows_threads{4096};
    // Store::gather: far more rows than the kernel prefetches.
    Knob gather_run_rows{gather_run_rows_limit};
    // Bytes of dropped bitmaps that one call gives back to the system.
    Knob dropped_bytes_max{std::size_t{16} << 20};
    // Records of a table's share of a shard that lie at their own places, in bytes; those of a larger one are indexed.
    Knob unindexed_bytes_max{std::size_t{256} << 20};
    // Of the 512 pages of an extent so many must be touched before it is moved into a huge page.
    Knob huge_page_touched_min{384};
};

inline constinit Tuning tuning;

// All knobs with their values, in order of their names: those above, and those of base/ and threads/.
std::vector<std::pair<std::string, std::uint64_t>> read_tuning();
// Sets all of them, or refuses: an unknown name, a value out of range.
void set_tuning(const std::vector<std::pair<std::string, std::int64_t>>& knobs);

}  // namespace ecrec
