/* Norms and products of float32, float16 and bfloat16, whose squares are exact in float64.
 *
 * A weight is seen as (outer, channels, inner), row-major, one slice for each channel.
 */

#pragma once

#include <math.h>
#include <stdbool.h>

#include "elements.h"

typedef struct {
    ptrdiff_t outer, channels, inner;
} shape;

LOOP double row_squares(dtype type, const char *row, ptrdiff_t count)
{
    const ptrdiff_t step = LANES * itemsize(type);
    __m256d sums[4] = {{0}}, x;
    for (; count >= 4 * LANES; count -= 4 * LANES) {
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++, row += step) {
            x = load(type, row);
            sums[part] = _mm256_fmadd_pd(x, x, sums[part]);
        }
    }
    for (; count >= LANES; count -= LANES, row += step) {
        x = load(type, row);
        sums[0] = _mm256_fmadd_pd(x, x, sums[0]);
    }
    x = load_rest(type, row, count);
    sums[0] = _mm256_fmadd_pd(x, x, sums[0]);
    __m256d all = _mm256_add_pd(_mm256_add_pd(sums[0], sums[1]), _mm256_add_pd(sums[2], sums[3]));
    return (all[0] + all[1]) + (all[2] + all[3]);
}

LOOP void scale_row(dtype type, const char *row, double factor, char *out, ptrdiff_t count)
{
    const ptrdiff_t step = LANES * itemsize(type);
    const __m256d factors = _mm256_set1_pd(factor);
    for (; count >= LANES; count -= LANES, row += step, out += step)
        store(type, out, _mm256_mul_pd(load(type, row), factors));
    if (count)
        store_rest(type, out, _mm256_mul_pd(load_rest(type, row, count), factors), count);
}

/* The same with a sum, or a factor, for each column. */
LOOP void column_squares(dtype type, const char *row, double *sums, ptrdiff_t count)
{
    const ptrdiff_t step = LANES * itemsize(type);
    for (; count >= LANES; count -= LANES, row += step, sums += LANES) {
        __m256d x = load(type, row);
        _mm256_storeu_pd(sums, _mm256_fmadd_pd(x, x, _mm256_loadu_pd(sums)));
    }
    __m256d rest = load_rest(type, row, count);
    for (ptrdiff_t i = 0; i < count; i++)
        sums[i] += rest[i] * rest[i];
}

LOOP void scale_columns(dtype type, const char *row, const double *factors, char *out,
                        ptrdiff_t count)
{
    const ptrdiff_t step = LANES * itemsize(type);
    for (; count >= LANES; count -= LANES, row += step, out += step, factors += LANES)
        store(type, out, _mm256_mul_pd(load(type, row), _mm256_loadu_pd(factors)));
    double last[LANES] = {0};
    memcpy(last, factors, count * sizeof(double));
    if (count)
        store_rest(type, out, _mm256_mul_pd(load_rest(type, row, count), _mm256_loadu_pd(last)),
                   count);
}

/* Rows shorter than this go by columns, as many as their float64 fit in the fastest cache: what
 * begins and ends a row takes longer than the row. Longer sums, of so many elements of a row or rows
 * of columns, are made of sums, whose rounding errors grow with their number. */
enum { SHORT_ROW = 24, COLUMNS = 1024, LONGEST_SUM = 8192, MOST_ROWS = 512 };

LOOP void add_squares(dtype type, const char *v, double *sums, shape s)
{
    const ptrdiff_t size = itemsize(type), whole = s.channels * s.inner * size;
    if (s.inner >= SHORT_ROW) {
        for (ptrdiff_t o = 0; o < s.outer; o++) {
            for (ptrdiff_t c = 0; c < s.channels; c++) {
                double sum = 0;
                for (ptrdiff_t left = s.inner, step; left > 0; left -= step, v += step * size) {
                    step = left < LONGEST_SUM ? left : LONGEST_SUM;
                    sum += row_squares(type, v, step);
                }
                sums[c] += sum;
            }
        }
        return;
    }
    const ptrdiff_t most = COLUMNS / s.inner;
    for (ptrdiff_t first = 0; first < s.channels; first += most, v += most * s.inner * size) {
        const ptrdiff_t here = first + most < s.channels ? most : s.channels - first;
        for (ptrdiff_t row = 0; row < s.outer; row += MOST_ROWS) {
            const ptrdiff_t end = row + MOST_ROWS < s.outer ? row + MOST_ROWS : s.outer;
            double columns[COLUMNS] = {0}, *column = columns;
            for (ptrdiff_t o = row; o < end; o++)
                column_squares(type, v + o * whole, columns, here * s.inner);
            for (ptrdiff_t c = first; c < first + here; c++)
                for (ptrdiff_t i = 0; i < s.inner; i++)
                    sums[c] += *column++;
        }
    }
}

LOOP void scale(dtype type, const char *v, const double *factors, char *w, shape s)
{
    const ptrdiff_t size = itemsize(type), whole = s.channels * s.inner * size;
    if (s.inner >= SHORT_ROW) {
        for (ptrdiff_t o = 0; o < s.outer; o++)
            for (ptrdiff_t c = 0; c < s.channels; c++, v += s.inner * size, w += s.inner * size)
                scale_row(type, v, factors[c], w, s.inner);
        return;
    }
    const ptrdiff_t most = COLUMNS / s.inner, step = most * s.inner * size;
    for (ptrdiff_t first = 0; first < s.channels; first += most, v += step, w += step) {
        const ptrdiff_t here = first + most < s.channels ? most : s.channels - first;
        double columns[COLUMNS], *column = columns;
        for (ptrdiff_t c = first; c < first + here; c++)
            for (ptrdiff_t i = 0; i < s.inner; i++)
                *column++ = factors[c];
        for (ptrdiff_t o = 0; o < s.outer; o++)
            scale_columns(type, v + o * whole, columns, w + o * whole, here * s.inner);
    }
}

/* How far, relatively, two orders of summation in float64 can part. */
#define SLACK 0x1p-38

/* From sums of squares to what v is multiplied by, in their place; false where that is no finite
 * number, or 0/0 but for g = 0 in any direction. Exactly 1 where g is the norm of v already. */
static bool to_factors(dtype type, const char *g, double *sums, ptrdiff_t channels)
{
    bool usual = true;
    for (ptrdiff_t channel = 0; channel < channels; channel++) {
        const double norm = sqrt(sums[channel]);
        const double stored = load_rest(type, g + channel * itemsize(type), 1)[0];
        const bool matches = stored == rounded(type, norm * (1 - SLACK)) ||
                             stored == rounded(type, norm * (1 + SLACK));
        usual &= isfinite(norm) && isfinite(stored) && (norm > 0 || stored == 0);
        sums[channel] = matches ? 1 : stored / norm;
    }
    return usual;
}

/* False where a norm is 0, or nothing that the dtype can hold. */
static bool to_magnitudes(dtype type, const double *sums, char *g, ptrdiff_t channels)
{
    bool usual = true;
    for (ptrdiff_t channel = 0; channel < channels; channel++) {
        const double norm = sqrt(sums[channel]);
        store_rest(type, g + channel * itemsize(type), _mm256_set1_pd(norm), 1);
        usual &= norm > 0 && isfinite(rounded(type, norm));
    }
    return usual;
}

/* For one dtype each, so that the compiler sees which. */
#define OF_EACH_TYPE(type, call) \
    switch (type) { \
    case F32: call(F32); break; \
    case F16: call(F16); break; \
    default: call(BF16); \
    }

static void add_squares_of(dtype type, const char *v, double *sums, shape s)
{
#define CALL(known) add_squares(known, v, sums, s)
    OF_EACH_TYPE(type, CALL)
#undef CALL
}

static void scale_by(dtype type, const char *v, const double *factors, char *w, shape s)
{
#define CALL(known) scale(known, v, factors, w, s)
    OF_EACH_TYPE(type, CALL)
#undef CALL
}
