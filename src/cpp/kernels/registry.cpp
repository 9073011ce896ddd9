#include "kernels/registry.hpp"

#include <atomic>

#include "kernels/cpu_features.hpp"

namespace ecrec {

#define ECREC_KERNEL(name, features) \
    namespace name {                 \
    extern const Operations table;   \
    }
#include "kernels/kernels.inl"
#undef ECREC_KERNEL

namespace {

struct Kernel {
    const Operations* table;
    std::uint32_t features;
};

constexpr Kernel all_kernels[] = {
#define ECREC_KERNEL(name, features) {&name::table, features},
#include "kernels/kernels.inl"
#undef ECREC_KERNEL
};

bool is_runnable(const Kernel& kernel) { return (kernel.features & ~cpu_features()) == 0; }

const Operations* fastest() {
    for (const Kernel& kernel : all_kernels) {
        if (is_runnable(kernel)) return kernel.table;
    }
    return &scalar::table;
}

constinit std::atomic<const Operations*> in_use{nullptr};

}  // namespace

const Operations& operations() {
    const Operations* table = in_use.load(std::memory_order_acquire);
    if (table == nullptr) {
        const Operations* choice = fastest();
        // Lost to a concurrent use_kernel: then `table` is what that one chose.
        if (in_use.compare_exchange_strong(table, choice)) table = choice;
    }
    return *table;
}

KernelChoice use_kernel(std::string_view name) {
    for (const Kernel& kernel : all_kernels) {
        if (name != kernel.table->name) continue;
        if (!is_runnable(kernel)) return KernelChoice::unsupported;
        in_use.store(kernel.table, std::memory_order_release);
        return KernelChoice::chosen;
    }
    return KernelChoice::unknown;
}

std::vector<const char*> compiled_kernels() {
    std::vector<const char*> names;
    for (const Kernel& kernel : all_kernels) names.push_back(kernel.table->name);
    return names;
}

std::vector<const char*> runnable_kernels() {
    std::vector<const char*> names;
    for (const Kernel& kernel : all_kernels) {
        if (is_runnable(kernel)) names.push_back(kernel.table->name);
    }
    return names;
}

}  // namespace ecrec
