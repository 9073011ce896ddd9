// Products by table look-up: c * x = low[x & 15] ^ high[x >> 4]. For instruction sets that can look up sixteen
// entries at once: `Bytes broadcast_table(const std::uint8_t*)` and `Bytes look_up(Bytes table, Bytes index)`.

using Constant = const Coefficient*;
Constant constant(const Coefficient& c) { return &c; }

struct Operand {
    Bytes low, high;
};
constexpr int operand_registers = 2;

Operand operand(Bytes x) { return {x & 15, reinterpret_cast<Bytes>(reinterpret_cast<Words>(x) >> 4) & 15}; }

struct Multiplier {
    explicit Multiplier(Constant c) : low(broadcast_table(c->low)), high(broadcast_table(c->high)) {}
    Bytes operator()(const Operand& x) const { return look_up(low, x.low) ^ look_up(high, x.high); }

    Bytes low, high;
};
