// Divider against division: dividends at and beside multiples, where a reciprocal that is too small or too large shows.
#include <cstdio>
#include <random>

#include "base/divider.hpp"

int main() {
    std::mt19937_64 engine(1);
    int failures = 0;
    const auto check = [&](std::uint64_t divisor, std::uint64_t dividend) {
        const ecrec::Divider divide(divisor);
        const bool small = dividend >> 32 == 0 && divisor >> 31 == 0;
        const std::uint64_t expected = dividend / divisor;
        if (divide(dividend) == expected && (!small || divide.of_small(dividend) == expected)) return;
        ++failures;
        std::printf("%llu / %llu\n", static_cast<unsigned long long>(dividend), static_cast<unsigned long long>(divisor));
    };
    const std::uint64_t edges[] = {(1ull << 31) - 1, 1ull << 31, (1ull << 31) + 1, (1ull << 32) - 1, 1ull << 32, 1ull << 40};
    const auto check_divisor = [&](std::uint64_t divisor) {
        for (int i = 0; i < 200; ++i) {
            const std::uint64_t multiple = (engine() >> (i % 2 == 0 ? 32 : 20)) / divisor * divisor;
            for (std::uint64_t dividend : {multiple, multiple + 1, multiple + divisor - 1}) check(divisor, dividend);
        }
        for (const std::uint64_t edge : edges) check(divisor, edge);
        check(divisor, 0);
        check(divisor, ~0ull);
    };
    for (std::uint64_t divisor = 1; divisor <= 2000; ++divisor) check_divisor(divisor);
    for (const std::uint64_t edge : edges) check_divisor(edge);
    for (int i = 0; i < 2000; ++i) check_divisor((engine() >> (20 + i % 44)) + 1);
    if (ecrec::Divider()(7) != 7) ++failures;
    return failures == 0 ? 0 : 1;
}
