/* Elements of float32, float16 and bfloat16, read and written four at a time as float64. */

#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LOOP static inline __attribute__((always_inline))

enum { LANES = 4 };

typedef enum { F32, F16, BF16, F64 } dtype;

static inline ptrdiff_t itemsize(dtype type)
{
    return type == F64 ? 8 : type == F32 ? 4 : 2;
}

LOOP __m256d load(dtype type, const char *from)
{
    if (type == F32)
        return _mm256_cvtps_pd(_mm_loadu_ps((const float *)from));
    __m128i halves = _mm_loadl_epi64((const __m128i *)from);
    if (type == F16)
        return _mm256_cvtps_pd(_mm_cvtph_ps(halves));
    __m128i high = _mm_slli_epi32(_mm_cvtepu16_epi32(halves), 16);
    return _mm256_cvtps_pd(_mm_castsi128_ps(high));
}

/* To the 24 bits of a float32, which keep whether anything was cut off ("round to odd"): what is
 * rounded to even from there on is rounded only once. */
LOOP __m128 to_odd(__m256d values)
{
    const __m256i cut = _mm256_set1_epi64x((1 << 29) - 1);
    __m256i bits = _mm256_castpd_si256(values);
    __m256i exact = _mm256_cmpeq_epi64(_mm256_and_si256(bits, cut), _mm256_setzero_si256());
    __m256i sticky = _mm256_andnot_si256(exact, _mm256_set1_epi64x(1 << 29));
    bits = _mm256_or_si256(_mm256_andnot_si256(cut, bits), sticky);
    return _mm256_cvtpd_ps(_mm256_castsi256_pd(bits));
}

LOOP void store(dtype type, char *to, __m256d values)
{
    if (type == F32) {
        _mm_storeu_ps((float *)to, _mm256_cvtpd_ps(values));
    } else if (type == F16) {
        _mm_storel_epi64((__m128i *)to, _mm_cvtps_ph(to_odd(values), _MM_FROUND_TO_NEAREST_INT));
    } else {
        /* As ml_dtypes does: by way of float32, and what is no number has no other bits set. */
        __m128 near = _mm256_cvtpd_ps(values);
        __m128i bits = _mm_castps_si128(near);
        __m128i even = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
        __m128i rounded = _mm_add_epi32(_mm_add_epi32(bits, _mm_set1_epi32(0x7fff)), even);
        __m128i nan = _mm_or_si128(_mm_and_si128(bits, _mm_set1_epi32(INT32_MIN)),
                                   _mm_set1_epi32(0x7fc00000));
        __m128i is_nan = _mm_castps_si128(_mm_cmpunord_ps(near, near));
        bits = _mm_srli_epi32(_mm_blendv_epi8(rounded, nan, is_nan), 16);
        _mm_storel_epi64((__m128i *)to, _mm_packus_epi32(bits, bits));
    }
}

/* What is left at the end of a row, fewer than four, filled up with zeros. */
LOOP __m256d load_rest(dtype type, const char *from, ptrdiff_t count)
{
    char rest[LANES * sizeof(float)] = {0};
    memcpy(rest, from, count * itemsize(type));
    return load(type, rest);
}

LOOP void store_rest(dtype type, char *to, __m256d values, ptrdiff_t count)
{
    char rest[LANES * sizeof(float)];
    store(type, rest, values);
    memcpy(to, rest, count * itemsize(type));
}

/* One element. Not by `load_rest`: what is stored in parts and loaded as a whole has to wait. */
LOOP double load_one(dtype type, const char *from)
{
    float single;
    uint16_t half;
    if (type == F32) {
        memcpy(&single, from, sizeof single);
        return single;
    }
    memcpy(&half, from, sizeof half);
    if (type == F16)
        return _cvtsh_ss(half);
    const uint32_t bits = (uint32_t)half << 16;
    memcpy(&single, &bits, sizeof single);
    return single;
}
