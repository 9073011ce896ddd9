// Many rows folded into parity, by all threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/operations.hpp"

namespace ecrec {

// targets[m] ^= c * sources[m], `bytes` each. A target may repeat; no source overlaps a target.
void fold_rows(std::size_t bytes, const Coefficient& c, std::span<const std::uint8_t* const> sources,
               std::span<std::uint8_t* const> targets);

}  // namespace ecrec
