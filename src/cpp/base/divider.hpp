// Division by a number that is fixed for a table: a multiplication where both are small.
#pragma once

#include <cstdint>

namespace ecrec {

class Divider {
public:
    Divider() = default;
    explicit Divider(std::uint64_t divisor)
        : divisor_(divisor),
          // Exact for 32-bit dividends and divisors below 2^31, one among them: the reciprocal is too large by less than
          // divisor / 2^63 of itself (Lemire, Kaser, Kurz: "Faster remainder by direct computation", 2019).
          reciprocal_(divisor >> 31 == 0 ? (std::uint64_t{1} << 63) / divisor + 1 : 0) {}

    std::uint64_t operator()(std::uint64_t dividend) const {
        if (reciprocal_ == 0 || dividend >> 32 != 0) [[unlikely]] return dividend / divisor_;
        return of_small(dividend);
    }
    // For dividends below 2^32, if the divisor is below 2^31.
    std::uint64_t of_small(std::uint64_t dividend) const {
        return static_cast<std::uint64_t>((static_cast<unsigned __int128>(reciprocal_) * (dividend << 1)) >> 64);
    }
    std::uint64_t divisor() const { return divisor_; }

private:
    std::uint64_t divisor_ = 1;
    std::uint64_t reciprocal_ = (std::uint64_t{1} << 63) + 1;
};

}  // namespace ecrec
