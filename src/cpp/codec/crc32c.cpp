#include "codec/crc32c.hpp"

#include <array>

#include "kernels/cpu_features.hpp"
#include "kernels/crc32c.hpp"

namespace ecrec {
namespace {

constexpr std::array<std::uint32_t, 256> make_table() {
    std::array<std::uint32_t, 256> table{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t rest = byte;
        for (int bit = 0; bit < 8; ++bit) rest = rest & 1 ? rest >> 1 ^ crc::polynomial : rest >> 1;
        table[byte] = rest;
    }
    return table;
}

constexpr std::array<std::uint32_t, 256> table = make_table();

struct Choice {
    crc::Run run;
    const char* name;
};

std::uint32_t run_table(std::uint32_t value, std::size_t bytes, const std::uint8_t* data) {
    for (std::size_t i = 0; i < bytes; ++i) value = value >> 8 ^ table[(value ^ data[i]) & 0xff];
    return value;
}

const Choice& choice() {
    static const Choice chosen = []() -> Choice {
#if ECREC_X86
        constexpr std::uint32_t wide = cpu_sse42 | cpu_avx512 | cpu_vpclmulqdq;
        if ((cpu_features() & wide) == wide) return {crc::run_avx512, "avx512"};
        if (cpu_features() & cpu_sse42) return {crc::run_sse42, "sse4.2"};
#endif
#if ECREC_NEON
        if (cpu_features() & cpu_arm_crc) return {crc::run_armv8, "armv8"};
#endif
        return {run_table, "table"};
    }();
    return chosen;
}

}  // namespace

std::uint32_t crc32c(std::uint32_t value, std::size_t bytes, const std::uint8_t* data) {
    return ~choice().run(~value, bytes, data);
}

std::uint32_t crc32c_by_table(std::uint32_t value, std::size_t bytes, const std::uint8_t* data) {
    return ~run_table(~value, bytes, data);
}

const char* crc32c_in_use() { return choice().name; }

}  // namespace ecrec
