// Prepared constants of the field: see kernels/operations.hpp for what they hold.
#pragma once

#include <cstdint>

#include "kernels/operations.hpp"

namespace ecrec::gf {

// The prepared form of a constant, from a table of all 256 that lives as long as the program.
const Coefficient& coefficient(std::uint8_t value);

}  // namespace ecrec::gf
