// The loops of every SIMD kernel, written once. A kernel's file includes this within its own anonymous namespace and
// target region: a function that two instruction sets shared would be compiled for one of them only, the linker's
// choice. For the same reason there is no inline function of the standard library in here but std::memcpy.
//
// Before it the file defines the vector types (vectors.inl), what the concepts below name, and
//   block, registers     bytes of a vector, and how many vectors the CPU can name
//   has_stream           stream() is a non-temporal store; else it is one as any other
//   has_line_stream      the same of LineStream
//   operand_registers    how many vectors an Operand is
// Whole gives access to a block; Part to fewer bytes; PartLanes to fewer floats, each of them whole.

template <class X, class F>
concept Primitives = requires(std::uint8_t* at, X bytes, F floats, const Coefficient& coefficient) {
    { stream(at, bytes) } -> std::same_as<void>;  // `at` is aligned to a block
    { fence() } -> std::same_as<void>;            // after the last stream()
    { all_zero(bytes) } -> std::same_as<bool>;
    { square_root(floats) } -> std::same_as<F>;
    { sum_of_lanes(floats) } -> std::same_as<float>;  // lanes added pairwise: halves, then their halves
    { constant(coefficient) } -> std::same_as<Constant>;
    { operand(bytes) } -> std::same_as<Operand>;
};

static_assert(Access<Whole, Bytes> && PartAccess<Part, Bytes> && PartAccess<PartLanes, Bytes>);
static_assert(BlockStream<LineStream, Bytes>);
static_assert(ProductBy<Multiplier, Constant, Operand, Bytes>);
static_assert(Primitives<Bytes, Floats>);
static_assert(sizeof(Bytes) == block && registers >= 16 && operand_registers >= 1);
static_assert(has_stream || !has_line_stream);

// In this order: each may use what stands in those before it.
// clang-format off
#include "kernels/products.inl"
#include "kernels/ahead.inl"
#include "kernels/rows.inl"
#include "kernels/floats.inl"
#include "kernels/sums.inl"
#include "kernels/optimizers.inl"
#include "kernels/uniform.inl"
// clang-format on

constexpr Operations table_named(const char* name) {
    return {
        .name = name,
        .encode = encode,
        .fold = fold,
        .fold_rows = fold_rows,
        .copy_rows = copy_rows,
        .difference = difference,
        .is_zero = is_zero,
        .is_finite = is_finite,
        .sum_rows = sum_rows,
        .pool_rows = pool_rows,
        .steps = all_steps,
        .initial_uniform = initial_uniform,
    };
}
