// The open window of a shard: what goes to each peer, and how far each peer may be written to.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "store/row_buffer.hpp"
#include "store/table.hpp"

namespace ecrec {

class Window {
public:
    explicit Window(std::shared_ptr<const Store> store);

    const Store* store() const { return store_.get(); }
    InUse& in_use() const { return *in_use_; }
    std::uint64_t limit(int peer, int class_id) const { return limits_[checked(peer, class_id)]; }
    void set_limit(int peer, int class_id, std::uint64_t position) {
        limits_[checked(peer, class_id)] = position;
    }
    RowBuffer& buffer(int peer);
    // Refuses so many more rows of so many bytes, all for one peer.
    void check_room(const char* where, std::size_t rows, std::size_t bytes) const;
    std::size_t rows() const;
    std::size_t record_bytes() const;

private:
    std::size_t checked(int peer, int class_id) const;

    std::shared_ptr<const Store> store_;
    std::shared_ptr<InUse> in_use_ = std::make_shared<InUse>();  // of the buffers, too
    std::vector<RowBuffer> buffers_;
    std::array<std::uint64_t, std::size_t{shards_max} * classes_max> limits_{};
};

}  // namespace ecrec
