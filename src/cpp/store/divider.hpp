// Division by a number that is fixed for a table: a multiplication where both fit 32 bits.
#pragma once

#include <cstdint>

namespace ecrec {

class Divider {
public:
    Divider() = default;
    explicit Divider(std::uint64_t divisor)
        : divisor_(divisor),
          // Exact for 32-bit dividends (Lemire, Kaser, Kurz: "Faster remainder by direct computation", 2019).
          reciprocal_(divisor > 1 && divisor >> 32 == 0 ? ~std::uint64_t{0} / divisor + 1 : 0) {}

    std::uint64_t operator()(std::uint64_t dividend) const {
        if (reciprocal_ == 0 || dividend >> 32 != 0) [[unlikely]]
            return divisor_ == 1 ? dividend : dividend / divisor_;
        return static_cast<std::uint64_t>((static_cast<unsigned __int128>(reciprocal_) * dividend) >> 64);
    }
    std::uint64_t divisor() const { return divisor_; }

private:
    std::uint64_t divisor_ = 1;
    std::uint64_t reciprocal_ = 0;
};

}  // namespace ecrec
