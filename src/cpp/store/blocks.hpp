// Memory for rows on their way to somebody else: large blocks lie in huge pages and are used again instead of being
// given back, because the system takes longer to hand out a page than to fill it.
#pragma once

#include <cstddef>

namespace ecrec::blocks {

// At least `bytes`, of unspecified content; `granted` is how many there are. Throws std::bad_alloc.
void* allocate(std::size_t bytes, std::size_t& granted);

// What allocate() returned, or null. From any thread.
void release(void* block);

}  // namespace ecrec::blocks
