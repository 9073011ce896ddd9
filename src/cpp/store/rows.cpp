// What workers see of a store: reading rows, and changing them.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/registry.hpp"
#include "store/deltas.hpp"
#include "base/error.hpp"
#include "store/key_index.hpp"
#include "store/store.hpp"
#include "store/tuning.hpp"
#include "threads/pool.hpp"

namespace ecrec {
namespace {

constexpr std::size_t corrections_floats = 4;  // two doubles

// Adam's step size for the next step of a row (Optimizer::corrects_bias):
// learning_rate * sqrt(1 - beta2^t) / (1 - beta1^t), where t counts the steps of this row. `corrections`, the last of the
// row's state, are the two 1 - beta^t as doubles, zero before the first step; delta takes in the bits of them that change,
// or is set to them. In double, because a float would stay 3e-5 below 1; and by the rule of m and v,
// c += (1 - c) * (1 - beta), because that needs no powers.
float corrected_step(const TableShape& shape, std::uint8_t* corrections, std::uint8_t* delta, bool merges) {
    double old[2], next[2];
    std::memcpy(old, corrections, sizeof old);
    for (std::size_t i = 0; i < 2; ++i) next[i] = old[i] + (1.0 - old[i]) * shape.hyper_exact[1 + i];
    std::memcpy(corrections, next, sizeof next);
    if (delta != nullptr) {
        std::uint64_t before[2], after[2], bits[2] = {};
        std::memcpy(before, old, sizeof old);
        std::memcpy(after, next, sizeof next);
        if (merges) std::memcpy(bits, delta, sizeof bits);
        for (std::size_t i = 0; i < 2; ++i) bits[i] ^= before[i] ^ after[i];
        std::memcpy(delta, bits, sizeof bits);
    }
    return static_cast<float>(shape.hyper_exact[0] * std::sqrt(next[1]) / next[0]);
}

}  // namespace

void Store::check_sections(const char* where, const Sections& sections) const {
    if (sections.tables.size() != sections.counts.size()) {
        refuse(ErrorKind::value, where, ": got ", sections.tables.size(), " tables and ",
               sections.counts.size(), " counts, expected as many");
    }
    std::uint64_t left = sections.rows.size();
    for (std::size_t i = 0; i < sections.tables.size(); ++i) {
        checked_table(where, sections.tables[i]);
        const std::int64_t count = sections.counts[i];
        if (count < 0 || static_cast<std::uint64_t>(count) > left) {
            refuse(ErrorKind::value, where, ": section ", i, " counts ", count, " rows, but ", left, " of ",
                   sections.rows.size(), " are left");
        }
        left -= static_cast<std::uint64_t>(count);
    }
    if (left != 0) {
        refuse(ErrorKind::value, where, ": the counts add up to ", sections.rows.size() - left, " rows, got ",
               sections.rows.size());
    }
}

void Store::find_rows(const char* where, std::size_t index, std::span<const std::int64_t> ids, bool recovered,
                      RowPlace* places) const {
    const Table& table = tables_[index];
    const std::uint64_t rows = table.shape().rows;
    const bool check_recovered = recovered && table.missing() != 0;
    for (const std::int64_t id : ids) {
        if (static_cast<std::uint64_t>(id) >= rows) [[unlikely]] {
            refuse(ErrorKind::index, where, ": row ", id, " of table ", index, " is out of range, the table has ", rows,
                   " rows");
        }
        RowPlace& row = *places++;
        if (!table.find(static_cast<std::uint64_t>(id), row)) [[unlikely]] {
            const std::uint64_t global = static_cast<std::uint64_t>(id) / static_cast<std::uint64_t>(table.shape().k);
            const std::uint64_t groups = static_cast<std::uint64_t>(place_.groups);
            refuse(ErrorKind::index, where, ": row ", id, " of table ", index, " is on shard ",
                   (row.residue + row.slot) % static_cast<std::uint32_t>(place_.shards), " of group ", global % groups,
                   ", not on shard ", place_.shard, " of group ", place_.group);
        }
        if (check_recovered && !table.is_recovered(row.quotient, row.slot)) [[unlikely]] {
            refuse(ErrorKind::state, where, ": row ", id, " of table ", index, " is not recovered yet");
        }
        table.prefetch_place(row.quotient, row.slot);
    }
}

void Store::resolve(const char* where, const Sections& sections, bool recovered) const {
    check_sections(where, sections);
    places_.shrink_to(0);
    RowPlace* places = places_.extend(sections.rows.size());
    std::size_t i = 0;
    for (std::size_t s = 0; s < sections.tables.size(); ++s) {
        const std::size_t table = static_cast<std::size_t>(sections.tables[s]);
        const std::size_t count = static_cast<std::size_t>(sections.counts[s]);
        const auto ids = sections.rows.subspan(i, count);
        pauses::in_pieces(count, pauses::piece_rows, pauses::row_bytes, [&](std::size_t first, std::size_t last) {
            find_rows(where, table, ids.subspan(first, last - first), recovered, places + first);
        });
        places += count;
        i += count;
    }
}

std::uint64_t Store::gather_bytes(std::span<const std::int32_t> tables, std::span<const std::int64_t> counts,
                                  bool records) const {
    if (tables.size() != counts.size()) {
        refuse(ErrorKind::value, "gather_bytes: got ", tables.size(), " tables and ", counts.size(),
               " counts, expected as many");
    }
    std::uint64_t bytes = 0;
    for (std::size_t s = 0; s < tables.size(); ++s) {
        const Table& table = tables_[checked_table("gather_bytes", tables[s])];
        if (counts[s] < 0)
            refuse(ErrorKind::value, "gather_bytes: section ", s, " counts ", counts[s], " rows");
        std::uint64_t section = 0;
        if (__builtin_mul_overflow(static_cast<std::uint64_t>(counts[s]),
                                   records ? table.record_bytes() : table.weight_bytes(), &section) ||
            __builtin_add_overflow(bytes, section, &bytes)) {
            refuse(ErrorKind::value, "gather_bytes: ", counts[s], " rows of section ", s, " exceed 2^64 bytes");
        }
    }
    return bytes;
}

void Store::gather(const Sections& sections, bool records, std::span<std::uint8_t> out) const {
    check_sections("gather", sections);
    const std::uint64_t expected = gather_bytes(sections.tables, sections.counts, records);
    if (out.size() != expected)
        refuse(ErrorKind::value, "gather: out has ", out.size(), " bytes, expected ", expected);
    std::uint8_t* target = out.data();
    std::size_t i = 0;
    for (std::size_t s = 0; s < sections.tables.size(); ++s) {
        const std::size_t index = static_cast<std::size_t>(sections.tables[s]);
        const std::size_t bytes = records ? tables_[index].record_bytes() : tables_[index].weight_bytes();
        const std::size_t rows = static_cast<std::size_t>(sections.counts[s]);
        const std::size_t piece = std::clamp<std::size_t>(pauses::bytes_between / bytes, 1, 2 * pauses::piece_rows);
        pauses::in_pieces(rows, piece, pauses::step_bytes + 2 * bytes, [&](std::size_t begin, std::size_t end) {
            threads::for_ranges(end - begin, threads::grain_bytes / bytes, 1, [&](std::size_t first, std::size_t last) {
                copy_out(index, sections.rows.subspan(i + begin + first, last - first), bytes,
                         target + (begin + first) * bytes);
            });
        });
        i += rows;
        target += rows * bytes;
    }
}

// The first `bytes` of each row's record. In runs: while the records of one are on their way, the processor finds those
// of the next.
void Store::copy_out(std::size_t index, std::span<const std::int64_t> ids, std::size_t bytes,
                     std::uint8_t* target) const {
    const std::size_t run = tuning.gather_run_rows;
    const Table& table = tables_[index];
    const Operations& operations = ecrec::operations();
    RowPlace places[Tuning::gather_run_rows_limit];
    Growing<const std::uint8_t*> sources;
    sources.reserve(ids.size());
    std::vector<float> initial;
    const auto find_next = [&] {
        const std::size_t first = sources.size(), rows = std::min(ids.size() - first, run);
        find_rows("gather", index, ids.subspan(first, rows), true, places);
        const std::uint8_t** source = sources.extend(rows);
        for (std::size_t m = 0; m < rows; ++m) {
            const RowPlace& row = places[m];
            const bool is_touched = table.is_touched(row.quotient, row.slot);
            source[m] = is_touched ? table.data_record(row.quotient, row.slot) : nullptr;
        }
        return rows;
    };
    std::size_t rows = find_next();
    for (std::size_t first = 0, next = 0; first < ids.size(); first += rows, rows = next) {
        next = find_next();
        operations.copy_rows(rows, bytes, sources.data() + first, target + first * bytes, next, first != 0);
        for (std::size_t m = first; m < first + rows; ++m) {
            if (sources[m] != nullptr) continue;
            initial.resize(table.record_bytes() / 4);
            table.write_initial(operations, static_cast<std::uint64_t>(ids[m]), initial.data());
            std::memcpy(target + m * bytes, initial.data(), bytes);
        }
    }
}

Growing<std::uint64_t> Store::missing(const Sections& sections) const {
    resolve("missing", sections, false);
    KeyIndex found;
    std::size_t i = 0;
    for (std::size_t s = 0; s < sections.tables.size(); ++s) {
        const std::uint64_t index = static_cast<std::uint64_t>(sections.tables[s]);
        const Table& table = tables_[index];
        const RowPlace* const rows = places_.data() + i;
        const std::size_t count = static_cast<std::size_t>(sections.counts[s]);
        i += count;
        if (table.missing() == 0) continue;
        pauses::in_pieces(count, pauses::piece_rows, pauses::row_bytes, [&](std::size_t first, std::size_t last) {
            for (std::size_t m = first; m < last; ++m) {
                const RowPlace& row = rows[m];
                if (table.is_recovered(row.quotient, row.slot)) continue;
                found.insert(index << stripe_bits | table.stripe_at(row.quotient, static_cast<int>(row.residue)));
            }
        });
    }
    return found.take();
}

Growing<std::uint64_t> Store::keys(const Sections& sections) const {
    resolve("keys", sections, false);
    Growing<std::uint64_t> keys;
    keys.reserve(sections.rows.size());
    std::size_t i = 0;
    for (std::size_t s = 0; s < sections.tables.size(); ++s) {
        const std::uint64_t index = static_cast<std::uint64_t>(sections.tables[s]);
        const std::size_t count = static_cast<std::size_t>(sections.counts[s]);
        pauses::in_pieces(count, pauses::piece_rows, pauses::row_bytes / 4, [&](std::size_t first, std::size_t last) {
            for (std::size_t m = i + first; m < i + last; ++m) {
                keys.push_back(
                    index << stripe_bits |
                    tables_[index].stripe_at(places_[m].quotient, static_cast<int>(places_[m].residue)));
            }
        });
        i += count;
    }
    return keys;
}

Growing<std::uint64_t> Store::distinct(std::span<const std::uint64_t> keys,
                                       std::span<const std::uint64_t> known) const {
    KeyIndex seen;
    Growing<std::uint64_t> found;
    const auto take = [&](std::span<const std::uint64_t> some, bool keeps) {
        pauses::in_pieces(some.size(), pauses::piece_rows, pauses::row_bytes, [&](std::size_t first, std::size_t last) {
            for (const std::uint64_t key : some.subspan(first, last - first)) {
                const std::uint32_t before = seen.size();
                if (seen.insert(key) == before && keeps) found.push_back(key);
            }
        });
    };
    take(known, false);
    take(keys, true);
    return found;
}

void Store::check_values(const char* where, const Sections& sections, std::span<const float> values, bool records,
                         const Window* window) const {
    if (window != nullptr && window->store() != this)
        refuse(ErrorKind::value, where, ": the window belongs to another store");
    const auto floats_of = [&](std::size_t s) {
        const Table& table = tables_[static_cast<std::size_t>(sections.tables[s])];
        return records ? table.used_bytes() / 4 : table.shape().dim;
    };
    gather_bytes(sections.tables, sections.counts, true);  // none of what follows exceeds 2^64
    std::uint64_t expected = 0;
    for (std::size_t s = 0; s < sections.tables.size(); ++s) {
        expected += static_cast<std::uint64_t>(sections.counts[s]) * floats_of(s);
    }
    if (values.size() != expected)
        refuse(ErrorKind::value, where, ": got ", values.size(), " floats, expected ", expected);
    if (window != nullptr) {
        const std::uint64_t bytes = gather_bytes(sections.tables, sections.counts, true);
        window->check_room(where, sections.rows.size(), bytes);
    }
    const Operations& operations = ecrec::operations();
    std::size_t first_row = 0;
    const float* value = values.data();
    for (std::size_t s = 0; s < sections.tables.size(); ++s) {
        const std::size_t dim = tables_[static_cast<std::size_t>(sections.tables[s])].shape().dim;
        const std::size_t floats = floats_of(s);
        const std::size_t count = static_cast<std::size_t>(sections.counts[s]);
        const std::size_t piece = std::max<std::size_t>(pauses::piece_bytes / (4 * floats), 1);
        pauses::in_pieces(count, piece, 2 * floats, [&](std::size_t first, std::size_t last) {
            if (floats == dim && operations.is_finite((last - first) * dim, value + first * dim)) return;
            std::size_t i = first;
            while (i < last && operations.is_finite(dim, value + i * floats)) ++i;
            if (i == last) return;
            refuse(ErrorKind::value, where, ": the values for row ", sections.rows[first_row + i],
                   " of table ", sections.tables[s], " are not all finite");
        });
        first_row += count;
        value += count * floats;
    }
}

// Steps of an optimizer with what its table wants before them (TableShape). Row by row: a row may repeat, and what decays is
// what the step before has left. step(steps) takes one step.
template <class Step>
void adjusted_steps(const TableShape& shape, const Steps& steps, Step&& step) {
    const std::size_t dim = steps.dim;
    const float limit = shape.max_gradient == 0 ? std::numeric_limits<float>::infinity() : shape.max_gradient;
    std::vector<float> gradient(dim), before(dim);
    const float* const own_gradient = gradient.data();
    for (std::size_t m = 0; m < steps.rows; ++m) {
        float* const weights = steps.records[m];
        const float* const given = steps.gradients[m];
        if (shape.kept != 1) {
            std::copy(weights, weights + dim, before.begin());
            for (std::size_t i = 0; i < dim; ++i) weights[i] *= shape.kept;
        }
        for (std::size_t i = 0; i < dim; ++i) gradient[i] = std::clamp(given[i], -limit, limit);
        // Not without a decay: of an infinite weight it would be no number.
        for (std::size_t i = 0; shape.decay != 0 && i < dim; ++i) gradient[i] += shape.decay * weights[i];
        Steps one = steps;
        one.rows = 1;
        one.gradients = &own_gradient;
        one.records = steps.records + m;
        one.deltas = steps.deltas == nullptr ? nullptr : steps.deltas + m;
        one.merges = steps.merges + m;
        one.later = 0;
        one.continues = one.streams = false;
        step(one);
        if (shape.kept == 1 || steps.deltas == nullptr) continue;
        // The step has taken the difference to the weights that were multiplied: back to those of before.
        for (std::size_t i = 0; i < dim; ++i) {
            const auto bits = [](float number) { return std::bit_cast<std::uint32_t>(number); };
            std::uint32_t delta;
            std::memcpy(&delta, steps.deltas[m] + 4 * i, 4);
            delta ^= bits(before[i]) ^ bits(before[i] * shape.kept);
            std::memcpy(steps.deltas[m] + 4 * i, &delta, 4);
        }
    }
}

// ShapeOf: shape_of(s, table) is the shape with which the steps of section s are taken. Step: step(table, shape, steps)
// changes the records of some rows of the table.
template <class ShapeOf, class Step>
void Store::update(const Sections& sections, std::span<const float> values, bool whole, Window* window,
                   ShapeOf&& shape_of, Step&& step) {
    // Several threads take part in a longer run; each row has one, whatever else is in the run.
    constexpr std::size_t run_max = Deltas::run_max, short_run = Tuning::run_rows_limit;
    const std::size_t parts = threads::parts_of(values.size_bytes(), threads::grain_bytes);
    const std::size_t run_rows = parts == 1 ? tuning.run_rows : tuning.run_rows_threads;
    const std::size_t run_bytes_max = tuning.run_bytes_max;
    const float* gradients[run_max];
    Deltas deltas(window, place_, beside_);
    const Operations& operations = ecrec::operations();
    const float* value = values.data();
    std::size_t i = 0;
    for (std::size_t s = 0; s < sections.tables.size(); ++s) {
        const std::uint64_t index = static_cast<std::uint64_t>(sections.tables[s]);
        Table& table = tables_[index];
        const TableShape& shape = shape_of(s, table);
        const std::size_t dim = shape.dim, floats = whole ? table.used_bytes() / 4 : dim;
        deltas.begin(table, index);
        const bool any_delta = deltas.any();
        const std::size_t run = std::clamp<std::size_t>(run_bytes_max / table.record_bytes(), 1, run_rows);
        const std::size_t count = static_cast<std::size_t>(sections.counts[s]);
        records_.shrink_to(0);
        float** const all_records = records_.extend(count);
        const std::size_t touched_at_once = std::min(run, Tuning::run_rows_limit);
        for (std::size_t first = 0, last = 0; first < count; first = last) {
            last = std::min(count, first + touched_at_once);
            const std::uint64_t touched = table.data_rows_touched();
            before_change(index, table, {places_.data() + i + first, last - first});
            for (std::size_t m = first; m < last; ++m) {
                const RowPlace& row = places_[i + m];
                all_records[m] = reinterpret_cast<float*>(table.touch(operations, row.quotient, row.residue, row.slot));
            }
            if (copying_ != nullptr) copying_->changed(index, {places_.data() + i + first, last - first});
            pauses::work((last - first) * pauses::row_bytes +
                         (table.data_rows_touched() - touched) * (pauses::new_page_bytes + 2 * table.record_bytes()));
        }
        for (std::size_t first = 0, rows = 0; first < count; first += rows) {
            rows = std::min(count - first, run);
            float* const* records = all_records + first;
            for (std::size_t m = 0; m < rows; ++m, value += floats) gradients[m] = value;
            if (any_delta) deltas.place({places_.data() + i + first, rows});
            // Without threads, the records of the next run are the kernel's to ask for.
            const std::size_t later = parts == 1 ? count - first - rows : 0;
            const bool continues = parts == 1 && first != 0;
            const auto take_steps = [&](std::size_t taken, const float* const* gradient, float* const* record,
                                        std::uint8_t* const* delta, const bool* merge) {
                step(table, shape,
                     Steps{taken, dim, table.used_bytes(), table.record_bytes(), shape.hyper.data(), gradient, record,
                           any_delta ? delta : nullptr, merge, nullptr, later, continues, deltas.streams()});
            };
            if (parts == 1) {
                take_steps(rows, gradients, records, deltas.deltas(), deltas.merges());
            } else {
                threads::run_parts(parts, [&](std::size_t part) {
                    const float* own_gradients[short_run];
                    float* own_records[short_run];
                    std::uint8_t* own_deltas[short_run];
                    bool own_merges[short_run];
                    std::size_t taken = 0;
                    for (std::size_t m = 0; m < rows; ++m) {
                        if (threads::part_of(records[m], parts) != part) continue;
                        own_gradients[taken] = gradients[m];
                        own_records[taken] = records[m];
                        if (any_delta) own_deltas[taken] = deltas.deltas()[m];
                        own_merges[taken] = deltas.merges()[m];
                        if (++taken != short_run) continue;
                        take_steps(taken, own_gradients, own_records, own_deltas, own_merges);
                        taken = 0;
                    }
                    take_steps(taken, own_gradients, own_records, own_deltas, own_merges);
                });
            }
            if (any_delta) deltas.finish();
            pauses::work(rows * (pauses::step_bytes + 2 * table.record_bytes()));
        }
        i += count;
    }
}

void Store::check(const Sections& sections, std::span<const float> values) {
    resolve("check", sections, true);
    check_values("check", sections, values, false, nullptr);
}

void Store::check_rates(const Sections& sections, std::span<const double> rates) const {
    if (!rates.empty() && rates.size() != sections.tables.size()) {
        refuse(ErrorKind::value, "apply: got ", rates.size(), " learning rates, expected one for each of ",
               sections.tables.size(), " tables");
    }
    for (std::size_t s = 0; s < rates.size(); ++s) {
        const TableShape& shape = tables_[static_cast<std::size_t>(sections.tables[s])].shape();
        const bool is_divisor = shape.optimizer->divides_by_rate;
        const float rate = static_cast<float>(rates[s]);
        if (!std::isfinite(rate) || rate < 0 || (is_divisor && rate == 0) || rates[s] * shape.decoupled_decay >= 1) {
            refuse(ErrorKind::value, "apply: learning rate ", rates[s], " of table ", sections.tables[s],
                   is_divisor ? ", expected a positive one" : ", expected a finite one, not below 0",
                   shape.decoupled_decay == 0 ? "" : ", with lr * weight_decay below 1");
        }
    }
}

void Store::apply(const Sections& sections, std::span<const float> gradients, Window* window,
                  std::span<const double> rates) {
    resolve("apply", sections, true);
    check_values("apply", sections, gradients, false, window);
    check_rates(sections, rates);
    const Operations& operations = ecrec::operations();
    TableShape own;
    const auto shape_of = [&](std::size_t s, const Table& table) -> const TableShape& {
        if (rates.empty() || rates[s] == table.shape().rate()) return table.shape();
        own = table.shape().at_rate(rates[s]);
        return own;
    };
    const auto step = [&](const TableShape& shape, Steps steps) {  // in several threads
        std::vector<float> step_sizes;
        if (shape.optimizer->corrects_bias) {
            step_sizes.resize(steps.rows);
            steps.step_sizes = step_sizes.data();
            const std::size_t before = steps.dim + shape.state_floats() - corrections_floats;
            for (std::size_t m = 0; m < steps.rows; ++m) {
                // The first steps.rows are set wherever any is.
                // NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult)
                std::uint8_t* delta = steps.deltas == nullptr ? nullptr : steps.deltas[m] + 4 * before;
                step_sizes[m] = corrected_step(shape, reinterpret_cast<std::uint8_t*>(steps.records[m] + before), delta,
                                               steps.merges[m]);
            }
        }
        operations.step(*shape.optimizer)(steps);
    };
    update(sections, gradients, false, window, shape_of, [&](const Table&, const TableShape& shape, const Steps& steps) {
        if (shape.adjusts_steps()) {
            adjusted_steps(shape, steps, [&](const Steps& one) { step(shape, one); });
        } else {
            step(shape, steps);
        }
    });
}

void Store::assign(const Sections& sections, std::span<const float> values, Window* window) {
    resolve("assign", sections, true);
    check_values("assign", sections, values, false, window);
    set_values(sections, values, false, window);
}

void Store::assign_records(const Sections& sections, std::span<const float> records, Window* window) {
    resolve("assign_records", sections, true);
    check_values("assign_records", sections, records, true, window);
    set_values(sections, records, true, window);
}

void Store::set_values(const Sections& sections, std::span<const float> values, bool records, Window* window) {
    const auto shape_of = [](std::size_t, const Table& table) -> const TableShape& { return table.shape(); };
    update(sections, values, records, window, shape_of, [&](const Table& table, const TableShape&, const Steps& steps) {
        const std::size_t bytes = records ? table.used_bytes() : table.weight_bytes();
        for (std::size_t m = 0; m < steps.rows; ++m) {
            if (steps.deltas != nullptr) {
                std::uint8_t* delta = steps.deltas[m];
                const auto* before = reinterpret_cast<const std::uint8_t*>(steps.records[m]);
                const auto* after = reinterpret_cast<const std::uint8_t*>(steps.gradients[m]);
                if (!steps.merges[m]) std::memset(delta, 0, table.record_bytes());
                for (std::size_t b = 0; b < bytes; ++b) delta[b] ^= before[b] ^ after[b];
            }
            std::memcpy(steps.records[m], steps.gradients[m], bytes);
        }
    });
}

}  // namespace ecrec
