/* Checksums as zip files have them: CRC-32, reflected, of the polynomial 0xEDB88320. */

#pragma once

#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static uint32_t table[256];

static void fill_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        table[byte] = byte;
        for (int bit = 0; bit < 8; bit++)
            table[byte] = table[byte] >> 1 ^ (table[byte] & 1 ? 0xedb88320 : 0);
    }
}

static uint32_t crc_by_bytes(const unsigned char *data, ptrdiff_t count, uint32_t crc)
{
    for (; count; count--)
        crc = crc >> 8 ^ table[(crc ^ *data++) & 0xff];
    return crc;
}

/* What 16 bytes leave of themselves in 16 that come later. */
static inline __m128i folded(__m128i x, __m128i into, __m128i powers)
{
    __m128i low = _mm_clmulepi64_si128(x, powers, 0x00);
    __m128i high = _mm_clmulepi64_si128(x, powers, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), into);
}

/* Gopal et al. 2009, "Fast CRC computation for generic polynomials using PCLMULQDQ": bytes are
 * multiplied by x^n modulo the polynomial, n being how far ahead they are moved, 64 or 16 bytes,
 * until 16 are left that have the checksum of all. The factors are x^(n + 32) and x^(n - 32),
 * reflected and shifted by one. */
static uint32_t crc_narrow(const unsigned char *data, ptrdiff_t count, uint32_t crc)
{
    const __m128i by_64 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4);
    const __m128i by_16 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    const __m128i *next = (const __m128i *)data;
    __m128i parts[4];
    if (count < 64)
        return crc_by_bytes(data, count, crc);
    for (int part = 0; part < 4; part++)
        parts[part] = _mm_loadu_si128(next++);
    parts[0] = _mm_xor_si128(parts[0], _mm_cvtsi32_si128((int)crc));
    for (count -= 64; count >= 64; count -= 64) {
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++)
            parts[part] = folded(parts[part], _mm_loadu_si128(next++), by_64);
    }
    for (int part = 1; part < 4; part++)
        parts[part] = folded(parts[part - 1], parts[part], by_16);
    for (; count >= 16; count -= 16)
        parts[3] = folded(parts[3], _mm_loadu_si128(next++), by_16);
    crc = crc_by_bytes((const unsigned char *)&parts[3], 16, 0);
    return crc_by_bytes((const unsigned char *)next, count, crc);
}

enum { WIDE = 256 };

/* The same, moving 256 bytes in four registers, for processors whose registers are so wide. */
__attribute__((target("avx512f,vpclmulqdq"))) static uint32_t
crc_wide(const unsigned char *data, ptrdiff_t count, uint32_t crc)
{
    const __m512i by_256 = _mm512_broadcast_i32x4(_mm_set_epi64x(0x1322d1430, 0x11542778a));
    __m512i parts[4];
    unsigned char left[WIDE];
    for (int part = 0; part < 4; part++)
        parts[part] = _mm512_loadu_si512(data + 64 * part);
    parts[0] = _mm512_xor_si512(parts[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    for (count -= WIDE, data += WIDE; count >= WIDE; count -= WIDE, data += WIDE) {
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++) {
            __m512i low = _mm512_clmulepi64_epi128(parts[part], by_256, 0x00);
            __m512i high = _mm512_clmulepi64_epi128(parts[part], by_256, 0x11);
            __m512i into = _mm512_loadu_si512(data + 64 * part);
            parts[part] = _mm512_xor_si512(_mm512_xor_si512(low, high), into);
        }
    }
    for (int part = 0; part < 4; part++)
        _mm512_storeu_si512(left + 64 * part, parts[part]);
    return crc_narrow(data, count, crc_narrow(left, WIDE, 0));
}

static uint32_t crc_of(const unsigned char *data, ptrdiff_t count, uint32_t crc, bool is_wide)
{
    return is_wide && count >= WIDE ? crc_wide(data, count, crc) : crc_narrow(data, count, crc);
}
