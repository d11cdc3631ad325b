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

/* high + low, not evaluated. */
typedef struct {
    double high, low;
} pair;

/* Adds x, and what that loses to the low part: many additions lose no more than one. */
static inline pair plus(pair sum, double x)
{
    const double total = sum.high + x, added = total - sum.high;
    return (pair){total, sum.low + ((sum.high - (total - added)) + (x - added))};
}

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
 * of columns, are made of sums, which lose nothing when they are added. */
enum { SHORT_ROW = 24, COLUMNS = 1024, LONGEST_SUM = 8192, MOST_ROWS = 512 };

LOOP void add_squares(dtype type, const char *v, pair *sums, shape s)
{
    const ptrdiff_t size = itemsize(type), whole = s.channels * s.inner * size;
    if (s.inner >= SHORT_ROW) {
        for (ptrdiff_t o = 0; o < s.outer; o++) {
            for (ptrdiff_t c = 0; c < s.channels; c++) {
                for (ptrdiff_t left = s.inner, step; left > 0; left -= step, v += step * size) {
                    step = left < LONGEST_SUM ? left : LONGEST_SUM;
                    sums[c] = plus(sums[c], row_squares(type, v, step));
                }
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
            for (ptrdiff_t c = first; c < first + here; c++) {
                double sum = 0;
                for (ptrdiff_t i = 0; i < s.inner; i++)
                    sum += *column++;
                sums[c] = plus(sums[c], sum);
            }
        }
    }
}

LOOP void scale(dtype type, const char *v, const pair *factors, char *w, shape s)
{
    const ptrdiff_t size = itemsize(type), whole = s.channels * s.inner * size;
    if (s.inner >= SHORT_ROW) {
        for (ptrdiff_t o = 0; o < s.outer; o++)
            for (ptrdiff_t c = 0; c < s.channels; c++, v += s.inner * size, w += s.inner * size)
                scale_row(type, v, factors[c].high, w, s.inner);
        return;
    }
    const ptrdiff_t most = COLUMNS / s.inner, step = most * s.inner * size;
    for (ptrdiff_t first = 0; first < s.channels; first += most, v += step, w += step) {
        const ptrdiff_t here = first + most < s.channels ? most : s.channels - first;
        double columns[COLUMNS], *column = columns;
        for (ptrdiff_t c = first; c < first + here; c++)
            for (ptrdiff_t i = 0; i < s.inner; i++)
                *column++ = factors[c].high;
        for (ptrdiff_t o = 0; o < s.outer; o++)
            scale_columns(type, v + o * whole, columns, w + o * whole, here * s.inner);
    }
}

/* Whether g is what the norm rounds to; clears `usual` where the norm, off by `slack` relatively,
 * may lie on either side of what is halfway between two numbers. */
LOOP bool is_rounded(dtype type, double g, pair norm, double slack, bool *usual)
{
    static const double half_unit[] = {[F32] = 0x1p-24, [F16] = 0x1p-11, [BF16] = 0x1p-8,
                                       [F64] = 0x1p-53};
    static const double smallest[] = {[F32] = 0x1p-126, [F16] = 0x1p-14, [BF16] = 0x1p-126,
                                      [F64] = 0x1p-1022};
    const int64_t exponent_bits = INT64_C(0x7ff) << 52;
    int64_t bits;
    double power;
    memcpy(&bits, &g, sizeof bits);
    bits &= exponent_bits;
    memcpy(&power, &bits, sizeof power);
    const double apart = (norm.high - g) + norm.low;
    double half = (power > smallest[type] ? power : smallest[type]) * half_unit[type];
    if (g == power && g > smallest[type] && apart < 0)
        half /= 2;
    const double beyond = fabs(apart) - half;
    *usual &= !(fabs(beyond) < norm.high * slack);
    return beyond <= 0;
}

static inline pair norm_of(pair sum)
{
    return (pair){sqrt(sum.high + sum.low), 0};
}

/* Twice what a norm is off by at most, relatively: MOST_ROWS of its squares, and a few more at the
 * end of a row, are added up without a low part, if there are as many. */
static double slack_of(ptrdiff_t terms)
{
    const ptrdiff_t most = MOST_ROWS + 2 * SHORT_ROW;
    return (double)(terms < most ? terms + 4 : most + 4) * 0x1p-53;
}

/* From sums of squares to what v is multiplied by, in their place; false where that is no finite
 * number, or 0/0 but for g = 0 in any direction, or where only the exact sum tells whether it is 1:
 * that is where g is the norm of v already. */
LOOP bool to_factors(dtype type, const char *g, pair *sums, ptrdiff_t channels, ptrdiff_t terms)
{
    const double slack = slack_of(terms);
    bool usual = true;
    for (ptrdiff_t channel = 0; channel < channels; channel++) {
        const pair norm = norm_of(sums[channel]);
        const double stored = load_one(type, g + channel * itemsize(type));
        usual &= isfinite(norm.high) && isfinite(stored) && (norm.high > 0 || stored == 0);
        const bool matches = is_rounded(type, stored, norm, slack, &usual);
        sums[channel] = (pair){matches ? 1 : stored / norm.high, 0};
    }
    return usual;
}

/* False where a norm is 0, or nothing that the dtype can hold, or too near to halfway. */
LOOP bool to_magnitudes(dtype type, const pair *sums, char *g, ptrdiff_t channels, ptrdiff_t terms)
{
    const double slack = slack_of(terms);
    bool usual = true;
    for (ptrdiff_t channel = 0; channel < channels; channel++, g += itemsize(type)) {
        const pair norm = norm_of(sums[channel]);
        const __m256d value = _mm256_set1_pd(norm.high);
        store_rest(type, g, type == BF16 ? _mm256_cvtps_pd(to_odd(value)) : value, 1);
        const double stored = load_one(type, g);
        const bool matches = is_rounded(type, stored, norm, slack, &usual);
        usual &= matches && norm.high > 0;
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

static void add_squares_of(dtype type, const char *v, pair *sums, shape s)
{
#define CALL(known) add_squares(known, v, sums, s)
    OF_EACH_TYPE(type, CALL)
#undef CALL
}

static void scale_by(dtype type, const char *v, const pair *factors, char *w, shape s)
{
#define CALL(known) scale(known, v, factors, w, s)
    OF_EACH_TYPE(type, CALL)
#undef CALL
}

static bool to_factors_of(dtype type, const char *g, pair *sums, ptrdiff_t channels,
                          ptrdiff_t terms)
{
    bool usual;
#define CALL(known) usual = to_factors(known, g, sums, channels, terms)
    OF_EACH_TYPE(type, CALL)
#undef CALL
    return usual;
}

static bool to_magnitudes_of(dtype type, const pair *sums, char *g, ptrdiff_t channels,
                             ptrdiff_t terms)
{
    bool usual;
#define CALL(known) usual = to_magnitudes(known, sums, g, channels, terms)
    OF_EACH_TYPE(type, CALL)
#undef CALL
    return usual;
}
