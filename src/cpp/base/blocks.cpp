#include "base/blocks.hpp"

#include <sys/mman.h>

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

#include "base/mapping.hpp"

namespace ecrec::blocks {
namespace {

struct Pool {
    std::mutex mutex;
    std::unordered_map<void*, std::size_t> bytes;  // of each block, in use or kept
    std::vector<std::vector<void*>> kept{64};      // by the logarithm of their size
    std::size_t kept_bytes = 0;
};

// Never destroyed: blocks are released until the very end of a process.
Pool& pool() {
    static Pool* const only = new Pool;
    return *only;
}

void* map(std::size_t bytes) {
    std::uint8_t* first = map_memory(bytes, true);
    if (first == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(first, bytes, MADV_HUGEPAGE);
#endif
    return first;
}

}  // namespace

void* allocate(std::size_t bytes, std::size_t& granted) {
    if (bytes < bytes_min) {
        void* small = std::malloc(bytes);
        if (small == nullptr) throw std::bad_alloc();
        granted = bytes;
        return small;
    }
    if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
    granted = std::bit_ceil(bytes < huge_page_bytes ? huge_page_bytes : bytes);
    Pool& all = pool();
    const std::lock_guard lock(all.mutex);
    std::vector<void*>& kept = all.kept[static_cast<std::size_t>(std::countr_zero(granted))];
    if (!kept.empty()) {
        void* block = kept.back();
        kept.pop_back();
        all.kept_bytes -= granted;
        return block;
    }
    void* block = map(granted);
    all.bytes.insert_or_assign(block, granted);
    return block;
}

void release(void* block) {
    if (block == nullptr) return;
    // malloc puts its own numbers before what it returns, which is therefore never at the start of a page.
    if (reinterpret_cast<std::uintptr_t>(block) % huge_page_bytes != 0) {
        std::free(block);
        return;
    }
    Pool& all = pool();
    const std::lock_guard lock(all.mutex);
    const auto found = all.bytes.find(block);
    if (found == all.bytes.end()) {
        std::free(block);
        return;
    }
    const std::size_t bytes = found->second;
    if (all.kept_bytes + bytes <= kept_bytes_max) {
        all.kept[static_cast<std::size_t>(std::countr_zero(bytes))].push_back(block);
        all.kept_bytes += bytes;
        return;
    }
    all.bytes.erase(found);
    munmap(block, bytes);
}

}  // namespace ecrec::blocks
