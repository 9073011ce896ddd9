#include "kernels/prefetch.hpp"

#include "kernels/cpu_features.hpp"

namespace ecrec {

PrefetchInto prefetch_into = is_intel_cpu() ? PrefetchInto::second_level : PrefetchInto::first_level;

}  // namespace ecrec
