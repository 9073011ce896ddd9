#include "store/tuning.hpp"

#include <bit>

#include "base/blocks.hpp"
#include "base/error.hpp"
#include "base/mapping.hpp"
#include "threads/pauses.hpp"
#include "threads/pool.hpp"

namespace ecrec {
namespace {

struct Named {
    const char* name;
    Knob* knob;
    std::size_t min, max;
    bool is_power = false;  // of two
};

constexpr std::size_t any_max = std::size_t{1} << 40;

constexpr Named all_knobs[] = {
    {"block_bytes_min", &blocks::bytes_min, 1, any_max},
    {"buffer_bytes_max", &tuning.buffer_bytes_max, 16, Tuning::buffer_bytes_limit},
    {"buffer_rows_max", &tuning.buffer_rows_max, 1, Tuning::buffer_rows_limit},
    {"collapse_errno", &collapse_errno, 1, 4095},
    {"collapse_failures", &collapse_failures, 0, any_max},
    {"dropped_bytes_max", &tuning.dropped_bytes_max, 1, any_max},
    {"fold_batch_rows", &tuning.fold_batch_rows, 1, 65536},
    {"fold_batch_rows_threads", &tuning.fold_batch_rows_threads, 1, 65536},
    {"gather_run_rows", &tuning.gather_run_rows, 1, Tuning::gather_run_rows_limit},
    {"huge_page_touched_min", &tuning.huge_page_touched_min, 1, 512},
    {"index_growth", &tuning.index_growth, 2, 64, true},
    {"index_slots_min", &tuning.index_slots_min, 2, std::size_t{1} << 24, true},
    {"index_values_first", &tuning.index_values_first, 1, (std::size_t{1} << 32) - 1},
    {"index_values_max", &tuning.index_values_max, 1, Tuning::buffer_rows_limit},
    {"kept_bytes_max", &blocks::kept_bytes_max, 0, any_max},
    {"lookup_found_one_in", &tuning.lookup_found_one_in, 1, any_max},
    {"lookup_judged_rows_min", &tuning.lookup_judged_rows_min, 0, any_max},
    {"lookup_windows_between", &tuning.lookup_windows_between, 1, 1 << 20},
    {"pause_bytes", &pauses::bytes_between, 1, any_max},
    {"run_bytes_max", &tuning.run_bytes_max, 1, any_max},
    {"run_rows", &tuning.run_rows, 1, Tuning::run_rows_limit},
    {"run_rows_threads", &tuning.run_rows_threads, 1, Tuning::run_rows_threads_limit},
    {"streamed_bytes_min", &tuning.streamed_bytes_min, 0, any_max},
    {"thread_grain_bytes", &threads::grain_bytes, 1, any_max},
    {"unindexed_bytes_max", &tuning.unindexed_bytes_max, 0, any_max},
};

const Named& checked(const std::string& name, std::int64_t value) {
    std::string names;
    for (const Named& each : all_knobs) {
        if (name != each.name) {
            names += (names.empty() ? "" : ", ") + std::string(each.name);
            continue;
        }
        if (value < 0 || static_cast<std::size_t>(value) < each.min || static_cast<std::size_t>(value) > each.max ||
            (each.is_power && !std::has_single_bit(static_cast<std::size_t>(value)))) {
            refuse(ErrorKind::value, "set_tuning: ", name, " is ", value, ", expected ",
                   each.is_power ? "a power of two from " : "", each.min, " to ", each.max);
        }
        return each;
    }
    refuse(ErrorKind::value, "set_tuning: unknown knob '", name, "', expected some of ", names);
}

}  // namespace

std::vector<std::pair<std::string, std::uint64_t>> read_tuning() {
    std::vector<std::pair<std::string, std::uint64_t>> values;
    for (const Named& each : all_knobs) values.emplace_back(each.name, each.knob->load());
    return values;
}

void set_tuning(const std::vector<std::pair<std::string, std::int64_t>>& knobs) {
    for (const auto& [name, value] : knobs) checked(name, value);
    for (const auto& [name, value] : knobs) checked(name, value).knob->store(static_cast<std::size_t>(value));
}

}  // namespace ecrec
