// Products by table look-up: c * x = low[x & 15] ^ high[x >> 4]. For instruction sets that can look up sixteen
// entries at once: `Bytes broadcast_table(const std::uint8_t*)` and `Bytes look_up(Bytes table, Bytes index)`.

using Constant = const Coefficient*;
Constant constant(const Coefficient& c) { return &c; }

struct Operand {
    Bytes whole, low, high;
};
constexpr int operand_registers = 3;

Operand operand(Bytes x) {
    return {x, x & 15, reinterpret_cast<Bytes>(reinterpret_cast<Words>(x) >> 4) & 15};
}

struct Multiplier {
    explicit Multiplier(Constant c)
        : low(broadcast_table(c->low)), high(broadcast_table(c->high)), is_one(c->value == 1) {}

    // The first parity is plain XOR by construction, and which way is the same for every block of a loop.
    Bytes operator()(const Operand& x) const {
        return is_one ? x.whole : look_up(low, x.low) ^ look_up(high, x.high);
    }

    Bytes low, high;
    bool is_one;
};
