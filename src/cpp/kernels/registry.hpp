// Which kernels there are, and the one in use.
#pragma once

#include <string_view>
#include <vector>

#include "kernels/operations.hpp"

namespace ecrec {

// The kernel in use: the fastest that this machine can run, unless use_kernel chose another. Take the
// reference once a call, outside of loops.
const Operations& operations();

enum class KernelChoice { chosen, unknown, unsupported };

KernelChoice use_kernel(std::string_view name);

// Names of all kernels in this build, fastest first; the last is "scalar".
std::vector<const char*> compiled_kernels();

// Those that this CPU and operating system can run.
std::vector<const char*> runnable_kernels();

}  // namespace ecrec
