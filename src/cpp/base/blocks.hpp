// Memory for rows on their way to somebody else: large blocks lie in huge pages and are used again instead of being
// given back, because the system takes longer to hand out a page than to fill it.
#pragma once

#include <atomic>
#include <cstddef>

namespace ecrec::blocks {

// Knobs (store/tuning.hpp). Smaller blocks are malloc's, which is quick with them; bytes of free blocks that are kept, a
// few windows to each peer.
inline constinit std::atomic<std::size_t> bytes_min{std::size_t{1} << 20}, kept_bytes_max{std::size_t{128} << 20};

// At least `bytes`, of unspecified content; `granted` is how many there are. Throws std::bad_alloc.
void* allocate(std::size_t bytes, std::size_t& granted);

// What allocate() returned, or null. From any thread.
void release(void* block);

}  // namespace ecrec::blocks
