// A copy of this shard's parity rows of some stripes of one class, at one cut (docs/protocol.md).
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/in_use.hpp"
#include "store/key_index.hpp"
#include "store/row_buffer.hpp"

namespace ecrec {

class Capture {
public:
    // All positions first <= p < last of the class.
    Capture(std::shared_ptr<const Store> store, int class_id, std::uint64_t first, std::uint64_t last);
    // The given stripes of the class.
    Capture(std::shared_ptr<const Store> store, int class_id, std::span<const std::uint64_t> keys);

    void fold(int source, std::span<const std::uint64_t> keys, std::span<const std::uint8_t> records);
    RowsBlob take() { return rows_.take(); }
    // Of what take() would give.
    std::size_t nbytes() const { return rows_.size() * sizeof(std::uint64_t) + rows_.record_bytes(); }

    const Store& store() const { return *store_; }
    InUse& in_use() const { return in_use_; }

private:
    bool holds(std::uint64_t key);

    mutable InUse in_use_;
    std::shared_ptr<const Store> store_;
    int class_id_;
    bool of_keys_;
    std::uint64_t first_ = 0;
    std::uint64_t last_ = 0;
    KeyIndex keys_;
    RowBuffer rows_;  // only rows that are not all zero to begin with, or were folded into
};

}  // namespace ecrec
