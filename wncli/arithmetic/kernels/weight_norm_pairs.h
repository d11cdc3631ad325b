/* Norms and products of float64, in pairs of float64 whose sum carries about 106 bits.
 *
 * Only of numbers whose squares, products and rounding errors stay far from the ends of the range;
 * the others are unusual. With an instruction that multiplies and adds in one, the error of a
 * product takes one operation (Dekker 1971, Knuth 4.2.2; Ogita, Rump, Oishi 2005, SIAM J. Sci.
 * Comput. 26:1955).
 */

#pragma once

#include <math.h>
#include <stdbool.h>

#include "elements.h"
#include "weight_norm.h"

/* Sums of squares, and products, between which errors are normal numbers or much too small to be
 * seen; factors that leave room for that. */
#define SMALLEST 0x1p-900
#define LARGEST 0x1p900
#define LARGEST_FACTOR 0x1p100

LOOP void add_four_squares(__m256d x, __m256d *high, __m256d *low)
{
    const __m256d square = _mm256_mul_pd(x, x);
    const __m256d total = _mm256_add_pd(*high, square);
    const __m256d added = _mm256_sub_pd(total, *high);
    const __m256d lost = _mm256_add_pd(_mm256_sub_pd(*high, _mm256_sub_pd(total, added)),
                                       _mm256_sub_pd(square, added));
    *low = _mm256_add_pd(*low, _mm256_add_pd(lost, _mm256_fmsub_pd(x, x, square)));
    *high = total;
}

static inline pair sum_of(pair a, pair b)
{
    const pair sum = plus(a, b.high);
    const double lost = sum.low + b.low, high = sum.high + lost;
    return (pair){high, lost - (high - sum.high)};
}

static inline pair square_of(double x)
{
    return (pair){x * x, __builtin_fma(x, x, -(x * x))};
}

static pair row_pair_squares(const double *row, ptrdiff_t count)
{
    pair sum = {0};
    if (count >= 4 * LANES) {
        __m256d high[4] = {{0}}, low[4] = {{0}};
        for (; count >= 4 * LANES; count -= 4 * LANES) {
#pragma GCC unroll 4
            for (int part = 0; part < 4; part++, row += LANES)
                add_four_squares(_mm256_loadu_pd(row), &high[part], &low[part]);
        }
        for (int part = 0; part < 4; part++)
            for (int lane = 0; lane < LANES; lane++)
                sum = sum_of(sum, (pair){high[part][lane], low[part][lane]});
    }
    for (; count; count--)
        sum = sum_of(sum, square_of(*row++));
    return sum;
}

/* Sums of sums, too, so that there are not many additions after each other. */
static void add_pair_squares(const double *v, pair *sums, shape s)
{
    for (ptrdiff_t first = 0; first < s.channels; first += COLUMNS) {
        const ptrdiff_t end = first + COLUMNS < s.channels ? first + COLUMNS : s.channels;
        for (ptrdiff_t start = 0; start < s.outer; start += MOST_ROWS) {
            const ptrdiff_t stop = start + MOST_ROWS < s.outer ? start + MOST_ROWS : s.outer;
            pair columns[COLUMNS] = {{0}};
            for (ptrdiff_t o = start; o < stop; o++) {
                const double *row = v + (o * s.channels + first) * s.inner;
                for (ptrdiff_t c = 0; c < end - first; c++) {
                    for (ptrdiff_t left = s.inner, step; left > 0; left -= step, row += step) {
                        step = left < LONGEST_SUM ? left : LONGEST_SUM;
                        columns[c] = sum_of(columns[c], row_pair_squares(row, step));
                    }
                }
            }
            for (ptrdiff_t c = first; c < end; c++)
                sums[c] = sum_of(sums[c], columns[c - first]);
        }
    }
}

/* x times high + low, rounded once; clears `usual` where that may have gone wrong. */
LOOP __m256d times(__m256d x, __m256d high, __m256d low, __m256d *usual)
{
    const __m256d product = _mm256_mul_pd(x, high), zero = _mm256_setzero_pd();
    const __m256d error = _mm256_fmadd_pd(x, low, _mm256_fmsub_pd(x, high, product));
    const __m256d size = _mm256_andnot_pd(_mm256_set1_pd(-0.0), product);
    const __m256d is_zero = _mm256_cmp_pd(x, zero, _CMP_EQ_OQ);
    const __m256d is_normal =
        _mm256_and_pd(_mm256_cmp_pd(size, _mm256_set1_pd(SMALLEST), _CMP_GT_OQ),
                      _mm256_cmp_pd(size, _mm256_set1_pd(LARGEST), _CMP_LT_OQ));
    *usual = _mm256_and_pd(*usual, _mm256_or_pd(is_zero, is_normal));
    /* Nothing to add keeps a zero's sign. */
    return _mm256_blendv_pd(_mm256_add_pd(product, error), product,
                            _mm256_cmp_pd(error, zero, _CMP_EQ_OQ));
}

static bool scale_by_pairs(const double *v, const pair *factors, double *w, shape s)
{
    __m256d usual = _mm256_castsi256_pd(_mm256_set1_epi64x(-1));
    for (ptrdiff_t o = 0; o < s.outer; o++) {
        for (ptrdiff_t c = 0; c < s.channels; c++) {
            const __m256d high = _mm256_set1_pd(factors[c].high);
            const __m256d low = _mm256_set1_pd(factors[c].low);
            ptrdiff_t left = s.inner;
            for (; left >= LANES; left -= LANES, v += LANES, w += LANES)
                _mm256_storeu_pd(w, times(_mm256_loadu_pd(v), high, low, &usual));
            for (; left; left--)
                *w++ = times(_mm256_set1_pd(*v++), high, low, &usual)[0];
        }
    }
    return _mm256_movemask_pd(usual) == (1 << LANES) - 1;
}

static inline bool is_usual(double value)
{
    return SMALLEST < value && value < LARGEST;
}

static pair root_of(pair sum)
{
    const double root = sqrt(sum.high);
    const double residue = __builtin_fma(-root, root, sum.high) + sum.low;
    return sum_of((pair){root, 0}, (pair){residue / (2 * root), 0});
}

/* More than what a norm is off by, relatively: a pair takes in at most 512 squares, each of which
 * costs it less than 2**-94, and up to 2**24 other pairs, each of which costs it 2**-105. */
#define PAIR_SLACK 0x1p-80

/* As `to_factors`, and `to_magnitudes`, for pairs. */
static bool to_pair_factors(const double *g, pair *sums, ptrdiff_t channels)
{
    bool usual = true;
    for (ptrdiff_t c = 0; c < channels; c++) {
        const pair norm = root_of(sums[c]);
        const double quotient = g[c] / norm.high;
        const double residue = __builtin_fma(-quotient, norm.high, g[c]) - quotient * norm.low;
        const bool matches = is_rounded(F64, g[c], norm, PAIR_SLACK, &usual);
        usual &= is_usual(sums[c].high) && fabs(quotient) < LARGEST_FACTOR &&
                 fabs(quotient) > 1 / LARGEST_FACTOR;
        sums[c] = matches ? (pair){1, 0} : (pair){quotient, residue / norm.high};
    }
    return usual;
}

static bool to_pair_magnitudes(const pair *sums, double *g, ptrdiff_t channels)
{
    bool usual = true;
    for (ptrdiff_t c = 0; c < channels; c++) {
        const pair norm = root_of(sums[c]);
        g[c] = norm.high;
        const bool matches = is_rounded(F64, g[c], norm, PAIR_SLACK, &usual);
        usual &= matches && is_usual(sums[c].high);
    }
    return usual;
}
