// crc32 of SSE4.2, as crc32c.inl asks for it. Needs ECREC_CRC_TARGET, and to be in namespace ecrec::crc.
namespace {

ECREC_CRC_TARGET inline std::uint64_t crc_word(std::uint64_t value, std::uint64_t word) {
    return _mm_crc32_u64(value, word);
}
ECREC_CRC_TARGET inline std::uint32_t crc_byte(std::uint32_t value, std::uint8_t byte) {
    return _mm_crc32_u8(value, byte);
}

}  // namespace
