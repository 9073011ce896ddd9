// What a SIMD kernel's file defines before it includes loops.inl, as concepts: the compiler says what does not fit.
// Nothing in here generates code, so that it may be used within every target region.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

namespace ecrec {

// Loads and stores a block of bytes, or, made for fewer, so many of them: the others load as zero and are not stored.
template <class A, class Bytes>
concept Access = requires(const A access, const std::uint8_t* from, std::uint8_t* to, Bytes x) {
    { access.load(from) } -> std::same_as<Bytes>;
    { access.store(to, x) } -> std::same_as<void>;
};

template <class A, class Bytes>
concept PartAccess = Access<A, Bytes> && std::constructible_from<A, std::size_t>;

// Stores blocks in order with non-temporal stores, from a multiple of 16 bytes where no block begins: the first block,
// the next ones, and 16 bytes of the last one.
template <class L, class Bytes>
concept BlockStream = std::constructible_from<L, std::uint8_t*> && requires(L lines, Bytes x) {
    { lines.first(x) } -> std::same_as<void>;
    { lines.next(x) } -> std::same_as<void>;
    { lines.last(x) } -> std::same_as<void>;
};

// The product of what a loop keeps of a coefficient with what is computed once from a source.
template <class M, class Constant, class Operand, class Bytes>
concept ProductBy = std::constructible_from<M, Constant> && requires(const M multiply, Operand x) {
    { multiply(x) } -> std::same_as<Bytes>;
};

}  // namespace ecrec
