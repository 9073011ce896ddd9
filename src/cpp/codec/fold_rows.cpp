#include "codec/fold_rows.hpp"

#include "kernels/registry.hpp"
#include "threads/pool.hpp"

namespace ecrec {

void fold_rows(std::size_t bytes, const Coefficient& c, std::span<const std::uint8_t* const> sources,
               std::span<std::uint8_t* const> targets) {
    const Operations& operations = ecrec::operations();
    const std::size_t parts = threads::parts_of(targets.size() * bytes, threads::grain_bytes);
    if (parts == 1) {
        operations.fold_rows(targets.size(), bytes, c, sources.data(), targets.data());
        return;
    }
    threads::run_parts(parts, [&](std::size_t part) {
        constexpr std::size_t run = 256;
        const std::uint8_t* from[run];
        std::uint8_t* to[run];
        std::size_t count = 0;
        for (std::size_t m = 0; m < targets.size(); ++m) {
            if (threads::part_of(targets[m], parts) != part) continue;
            from[count] = sources[m];
            to[count] = targets[m];
            if (++count != run) continue;
            operations.fold_rows(count, bytes, c, from, to);
            count = 0;
        }
        operations.fold_rows(count, bytes, c, from, to);
    });
}

}  // namespace ecrec
