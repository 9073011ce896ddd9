// CRC-32C by an instruction that takes 8 bytes. It is done three cycles after it began, and another can begin in each: three
// lanes of `block` bytes go side by side, and are joined by a table that moves a register past a block of zeros.
// The tail is done in the register of the first lane. Needs ECREC_CRC_TARGET, crc_word and crc_byte.
namespace {

constexpr std::uint32_t multiplied(std::uint32_t a, std::uint32_t b) {
    std::uint32_t product = 0;
    for (std::uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
        if (a & bit) product ^= b;
        b = b & 1 ? b >> 1 ^ polynomial : b >> 1;
    }
    return product;
}

// x^(8 * bytes).
constexpr std::uint32_t shift_by(std::size_t bytes) {
    std::uint32_t power = 1u << 31, square = 1u << 30;
    for (std::size_t bits = 8 * bytes; bits != 0; bits >>= 1) {
        if (bits & 1) power = multiplied(power, square);
        square = multiplied(square, square);
    }
    return power;
}

struct Shift {
    std::uint32_t of[4][256];
};

constexpr Shift make_shift(std::size_t bytes) {
    Shift shift{};
    const std::uint32_t factor = shift_by(bytes);
    for (std::uint32_t at = 0; at < 4; ++at) {
        for (std::uint32_t byte = 0; byte < 256; ++byte) shift.of[at][byte] = multiplied(factor, byte << 8 * at);
    }
    return shift;
}

constexpr std::size_t long_block = 4096, short_block = 256;
constexpr Shift long_shift = make_shift(long_block), short_shift = make_shift(short_block);

std::uint32_t shifted(const Shift& shift, std::uint32_t value) {
    return shift.of[0][value & 0xff] ^ shift.of[1][value >> 8 & 0xff] ^ shift.of[2][value >> 16 & 0xff] ^
           shift.of[3][value >> 24];
}

std::uint64_t word_at(const std::uint8_t* data) {
    std::uint64_t word;
    __builtin_memcpy(&word, data, 8);
    return word;
}

ECREC_CRC_TARGET std::uint32_t lanes(std::uint32_t value, std::size_t& bytes, const std::uint8_t*& data,
                                     std::size_t block, const Shift& shift) {
    while (bytes >= 3 * block) {
        std::uint64_t a = value, b = 0, c = 0;
        for (std::size_t i = 0; i < block; i += 8) {
            a = crc_word(a, word_at(data + i));
            b = crc_word(b, word_at(data + block + i));
            c = crc_word(c, word_at(data + 2 * block + i));
        }
        value = shifted(shift, static_cast<std::uint32_t>(a)) ^ static_cast<std::uint32_t>(b);
        value = shifted(shift, value) ^ static_cast<std::uint32_t>(c);
        data += 3 * block;
        bytes -= 3 * block;
    }
    return value;
}

ECREC_CRC_TARGET std::uint32_t run(std::uint32_t value, std::size_t bytes, const std::uint8_t* data) {
    value = lanes(value, bytes, data, long_block, long_shift);
    value = lanes(value, bytes, data, short_block, short_shift);
    std::uint64_t register_value = value;
    for (; bytes >= 8; bytes -= 8, data += 8) register_value = crc_word(register_value, word_at(data));
    value = static_cast<std::uint32_t>(register_value);
    for (; bytes != 0; --bytes) value = crc_byte(value, *data++);
    return value;
}

}  // namespace
