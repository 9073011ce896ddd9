#include "store/store.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "gf/matrix.hpp"
#include "base/error.hpp"
#include "store/tuning.hpp"

namespace ecrec {
namespace {

// Bytes of one table on one shard, so that no product of sizes overflows; more than any machine has.
constexpr double table_bytes_max = 70368744177664.0;  // 2^46
constexpr std::int64_t dim_max = 1 << 24;
constexpr std::size_t tables_max = (std::size_t{1} << (64 - stripe_bits)) - 1;

float checked_float(const char* what, double value) {
    const float narrow = static_cast<float>(value);
    if (!std::isfinite(narrow))
        refuse(ErrorKind::value, "add_table: ", what, " is ", value, ", expected a finite float32");
    return narrow;
}

const Optimizer& optimizer_named(const std::string& name) {
    std::string names;
    for (const Optimizer& each : optimizers) {
        if (name == each.name.text) return each;
        names += (names.empty() ? "" : ", ") + std::string(each.name.text);
    }
    refuse(ErrorKind::value, "add_table: unknown optimizer '", name, "', expected one of ", names);
}

void set_optimizer(const Optimizer& named, const std::vector<double>& hyper, TableShape& shape) {
    const std::size_t expected = named.hyper_count();
    if (hyper.size() != expected) {
        std::string names;
        for (std::size_t i = 0; i < expected; ++i) names += (i == 0 ? "" : ", ") + std::string(named.hyper[i].name);
        refuse(ErrorKind::value, "add_table: ", named.name.text, " got ", hyper.size(), " hyperparameters, expected [",
               names, "]");
    }
    shape.optimizer = &named;
    for (std::size_t i = 0; i < expected; ++i) {
        checked_float(named.hyper[i].name, hyper[i]);
        shape.hyper_exact[i] = named.hyper[i].from_one ? 1.0 - hyper[i] : hyper[i];
        shape.hyper[i] = static_cast<float>(shape.hyper_exact[i]);
    }
}

void set_adjustments(const TableOptions& options, TableShape& shape) {
    checked_float("weight_decay", options.weight_decay);
    checked_float("max_gradient", options.max_gradient);
    if (options.weight_decay < 0 || options.max_gradient < 0) {
        refuse(ErrorKind::value, "add_table: weight_decay is ", options.weight_decay, " and max_gradient ",
               options.max_gradient, ", expected at least 0");
    }
    shape.max_gradient = static_cast<float>(options.max_gradient);
    if (options.decoupled) {
        shape.decoupled_decay = options.weight_decay;
        shape.kept = checked_float("1 - lr * weight_decay", 1.0 - shape.rate() * options.weight_decay);
    } else {
        shape.decay = static_cast<float>(options.weight_decay);
    }
}

Initial initial_from_name(const std::string& name) {
    if (name == "zeros") return Initial::zeros;
    if (name == "uniform") return Initial::uniform;
    refuse(ErrorKind::value, "add_table: unknown init '", name, "', expected zeros or uniform");
}

TableShape checked_shape(const TableOptions& options, int shards) {
    if (options.rows < 1)
        refuse(ErrorKind::value, "add_table: rows is ", options.rows, ", expected at least 1");
    if (options.dim < 1 || options.dim > dim_max) {
        refuse(ErrorKind::value, "add_table: dim is ", options.dim, ", expected 1 to ", dim_max);
    }
    if (options.k < 1 || options.r < 0 || options.k > shards || options.r > shards - options.k) {
        refuse(ErrorKind::value, "add_table: code (", options.k, ", ", options.r, ") does not fit ", shards,
               " shards, expected k >= 1, r >= 0 and k + r <= shards");
    }
    TableShape shape;
    shape.rows = static_cast<std::uint64_t>(options.rows);
    shape.dim = static_cast<std::uint64_t>(options.dim);
    shape.k = options.k;
    shape.r = options.r;
    set_optimizer(optimizer_named(options.optimizer), options.hyper, shape);
    set_adjustments(options, shape);
    shape.initial = initial_from_name(options.initial);
    shape.seed = options.initial_seed;
    shape.scale = checked_float("init_scale", options.initial_scale);
    shape.state = checked_float("init_state", options.initial_state);
    const double record_bytes_max = 4.0 * static_cast<double>(shape.dim + shape.state_floats()) + 16;
    if (static_cast<double>(shape.rows) * record_bytes_max > table_bytes_max) {
        refuse(ErrorKind::value, "add_table: ", options.rows, " rows of dim ", options.dim,
               " are more than 2^46 bytes");
    }
    return shape;
}

}  // namespace

Store::Store(int shard, int shards, int group, int groups) : place_{shard, shards, group, groups} {
    if (shards < 1 || shards > shards_max)
        refuse(ErrorKind::value, "Store: shards is ", shards, ", expected 1 to ", shards_max);
    if (shard < 0 || shard >= shards)
        refuse(ErrorKind::value, "Store: shard is ", shard, ", expected 0 to ", shards - 1);
    if (groups < 1) refuse(ErrorKind::value, "Store: groups is ", groups, ", expected at least 1");
    if (group < 0 || group >= groups)
        refuse(ErrorKind::value, "Store: group is ", group, ", expected 0 to ", groups - 1);
}

int Store::add_table(const TableOptions& options) {
    if (tables_.size() >= tables_max)
        refuse(ErrorKind::value, "add_table: the store has ", tables_max, " tables, the most there can be");
    const TableShape shape = checked_shape(options, place_.shards);
    const auto generator = gf::generator_from_name(options.generator);
    if (!generator) {
        refuse(ErrorKind::value, "add_table: unknown generator '", options.generator,
               "', expected cauchy or isal-cauchy");
    }
    std::size_t code = 0;
    const auto same = [&](const Code& other) {
        return other.k() == shape.k && other.r() == shape.r && other.generator() == *generator;
    };
    while (code < codes_.size() && !same(codes_[code].code)) ++code;
    const bool added = code == codes_.size();
    if (added && (static_cast<int>(code) + 1) * place_.shards > classes_max) {
        refuse(ErrorKind::value, "add_table: ", code + 1, " different codes on ", place_.shards,
               " shards are more than ", classes_max, " classes");
    }
    const std::uint64_t offset = added ? 0 : codes_[code].positions;
    Table table = [&] {
        try {
            return Table(shape, place_, static_cast<int>(code), offset, options.recovered);
        } catch (const StoreError& error) {
            refuse(error.kind(), "add_table: table ", tables_.size(), " of ", options.rows, " rows of dim ",
                   options.dim, ": ", error.what());
        }
    }();
    if (added) codes_.push_back({Code(shape.k, shape.r, *generator)});
    codes_[code].tables.push_back(tables_.size());
    codes_[code].positions += table.quotients();
    tables_.push_back(std::move(table));
    return static_cast<int>(tables_.size()) - 1;
}

std::uint64_t Store::class_size(int class_id) const {
    check_class(class_id);
    const std::size_t code = static_cast<std::size_t>(class_id / place_.shards);
    return code < codes_.size() ? codes_[code].positions : 0;
}

MemoryUse Store::memory() const {
    MemoryUse use;
    for (const Table& table : tables_) {
        use.data_rows_touched += table.data_rows_touched();
        use.parity_rows_touched += table.parity_rows_touched();
        use.data_bytes_reserved += table.data_memory().records().size();
        use.parity_bytes_reserved += table.parity_memory().records().size();
        use.data_bytes_touched += table.data_rows_touched() * table.record_bytes();
        use.parity_bytes_touched += table.parity_rows_touched() * table.record_bytes();
    }
    return use;
}

bool Store::use_huge_pages(std::size_t extents) {
    release_dropped();
    while (huge_pages_ && extents != 0) {
        if (huge_table_ >= tables_.size()) {
            huge_table_ = 0;
            if (!std::exchange(huge_moved_, false)) return false;
        }
        Table& table = tables_[huge_table_];
        huge_extent_ = table.next_touched_extent(huge_extent_);
        --extents;
        if (huge_extent_ >= table.extents()) {
            ++huge_table_;
            huge_extent_ = 0;
            continue;
        }
        const Collapsed found = table.collapse_if_dense(huge_extent_++);
        huge_moved_ |= found == Collapsed::moved;
        huge_pages_ = found != Collapsed::refused;
        if (found == Collapsed::later) break;  // the others are as likely to fail now, and each takes its time
    }
    return huge_pages_;
}

void Store::release_dropped() {
    if (dropped_.empty()) [[likely]] return;
    if (!dropped_.back().shrink(tuning.dropped_bytes_max)) dropped_.pop_back();
}

bool Store::give_up() {
    dropped_.reserve(dropped_.size() + 4 * tables_.size());
    for (Table& table : tables_) table.give_up(dropped_);
    tables_.clear();
    codes_.clear();
    release_dropped();
    return !dropped_.empty();
}

void Store::check_peer(int peer) const {
    if (peer < 0 || peer >= place_.shards) {
        refuse(ErrorKind::value, "shard ", peer, " is not in the group, expected 0 to ", place_.shards - 1);
    }
}

void Store::check_class(int class_id) const {
    if (class_id < 0 || class_id >= classes_max) {
        refuse(ErrorKind::value, "class id is ", class_id, ", expected 0 to ", classes_max - 1);
    }
}

void Store::check_keys(const char* where, std::span<const std::uint64_t> keys) const {
    pauses::in_pieces(keys.size(), pauses::piece_rows, pauses::row_bytes / 4, [&](std::size_t first, std::size_t last) {
        for (std::size_t i = first; i < last; ++i) {
            const std::uint64_t index = keys[i] >> stripe_bits;
            if (index >= tables_.size()) {
                refuse(ErrorKind::value, where, ": key ", i, " names table ", index, ", expected 0 to ",
                       static_cast<std::int64_t>(tables_.size()) - 1);
            }
            if (stripe_of(keys[i]) >= tables_[index].stripes()) {
                refuse(ErrorKind::index, where, ": key ", i, " names stripe ", stripe_of(keys[i]), " of table ",
                       index, ", which has ", tables_[index].stripes(), " stripes in this group");
            }
        }
    });
}

void Store::check_blob(const char* where, std::span<const std::uint64_t> keys, std::size_t bytes) const {
    check_keys(where, keys);
    std::size_t expected = 0;
    pauses::in_pieces(keys.size(), pauses::piece_rows, pauses::row_bytes / 4, [&](std::size_t first, std::size_t last) {
        std::size_t sum = expected;
        for (const std::uint64_t key : keys.subspan(first, last - first)) {
            if (__builtin_add_overflow(sum, table_of(key).record_bytes(), &sum)) sum = SIZE_MAX;
        }
        expected = sum;
    });
    if (bytes != expected) {
        refuse(ErrorKind::value, where, ": got ", bytes, " bytes of records for ", keys.size(),
               " keys, expected ", expected);
    }
}

std::string Store::describe(std::uint64_t key) const {
    return "stripe " + std::to_string(stripe_of(key)) + " of table " + std::to_string(key >> stripe_bits);
}

int Store::parity_index(int class_id) const {
    check_class(class_id);
    if (static_cast<std::size_t>(class_id / place_.shards) >= codes_.size()) {
        refuse(ErrorKind::value, "class ", class_id, " is of no code, the store has ", codes_.size());
    }
    const StoreCode& code = code_of(class_id);
    const int index = place_.slot_in(residue_of(class_id)) - code.k();
    if (index < 0 || index >= code.r()) {
        refuse(ErrorKind::value, "shard ", place_.shard, " holds no parity of class ", class_id);
    }
    return index;
}

std::size_t Store::checked_table(const char* where, std::int64_t index) const {
    if (index < 0 || static_cast<std::size_t>(index) >= tables_.size()) {
        refuse(ErrorKind::value, where, ": unknown table ", index, ", the store has ", tables_.size());
    }
    return static_cast<std::size_t>(index);
}

int Store::data_slot(int class_id) const {
    check_class(class_id);
    if (static_cast<std::size_t>(class_id / place_.shards) >= codes_.size()) return -1;
    const int slot = place_.slot_in(residue_of(class_id));
    return slot < code_of(class_id).k() ? slot : -1;
}

void Store::begin_snapshot(Snapshot* snapshot) {
    if (snapshot_ != nullptr) refuse(ErrorKind::state, "Snapshot: another one of this store is not over");
    snapshot_ = snapshot;
}

void Store::end_snapshot(const Snapshot* snapshot) {
    if (snapshot_ == snapshot) snapshot_ = nullptr;
}

void Store::begin_copying(Copying* copying) {
    if (copying_ != nullptr) refuse(ErrorKind::state, "Copying: another one of this store is not over");
    copying_ = copying;
}

void Store::end_copying(const Copying* copying) {
    if (copying_ == copying) copying_ = nullptr;
}

}  // namespace ecrec
