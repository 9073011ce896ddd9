// Vectors of `block` bytes and how to load and store them; included by a kernel's file before its primitives, within
// its target region and anonymous namespace (see loops.inl).
//
// The types are GCC's and Clang's vector extension: ^ & | >> + - * / are elementwise, and a scalar operand stands
// for a vector of it.

using Bytes = std::uint8_t __attribute__((vector_size(block)));
using Words = std::uint32_t __attribute__((vector_size(block)));
using SignedWords = std::int32_t __attribute__((vector_size(block)));
using Floats = float __attribute__((vector_size(block)));

constexpr std::size_t lanes = block / sizeof(float);

struct Whole {
    Bytes load(const std::uint8_t* at) const {
        Bytes x;
        std::memcpy(&x, at, block);
        return x;
    }
    void store(std::uint8_t* at, Bytes x) const { std::memcpy(at, &x, block); }
};

// Fewer bytes than a block, by way of memory: for instruction sets without masked loads. Missing bytes load as zero.
struct CopiedPart {
    explicit CopiedPart(std::size_t count) : bytes(count) {}

    Bytes load(const std::uint8_t* at) const {
        Bytes x = {};
        std::memcpy(&x, at, bytes);
        return x;
    }
    void store(std::uint8_t* at, Bytes x) const { std::memcpy(at, &x, bytes); }

    std::size_t bytes;
};

// For instruction sets that cannot join two vectors at a place that is known at run time only: never used.
struct NoLineStream {
    explicit NoLineStream(std::uint8_t*) {}
    void first(Bytes) {}
    void next(Bytes) {}
    void last(Bytes) {}
};
