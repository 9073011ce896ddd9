// Products by one instruction, GF2P8AFFINEQB, for every width: `Bytes affine(Bytes x, std::uint64_t matrix)`.

using Constant = std::uint64_t;
Constant constant(const Coefficient& c) { return c.matrix; }

using Operand = Bytes;
constexpr int operand_registers = 1;
Operand operand(Bytes x) { return x; }

struct Multiplier {
    explicit Multiplier(Constant c) : matrix(c) {}
    Bytes operator()(Operand x) const { return affine(x, matrix); }

    std::uint64_t matrix;
};
