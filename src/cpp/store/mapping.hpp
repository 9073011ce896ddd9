// Anonymous memory that costs nothing until it is touched.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ecrec {

class Mapping {
public:
    Mapping() = default;
    // Zeroed memory, reserved and not yet resident. StoreError (state) if the address space is exhausted.
    explicit Mapping(std::size_t bytes);
    ~Mapping();
    Mapping(Mapping&& other) noexcept;
    Mapping& operator=(Mapping&& other) noexcept;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;

    std::uint8_t* data() const { return data_; }
    std::size_t size() const { return bytes_; }

private:
    std::uint8_t* data_ = nullptr;
    std::size_t bytes_ = 0;
};

}  // namespace ecrec
