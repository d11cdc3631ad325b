/* Weight norm of a block: the loops that every byte of a large checkpoint goes through.
 *
 * They are for float32, float16 and bfloat16, whose squares are exact in float64. A block is seen
 * as (outer, channels, inner), row-major, with a slice for each channel. The order of all additions
 * is written out, so that every compiler gives the same bits.
 *
 * What is unusual (NaN, Inf, slices without a direction, norms too near to halfway between two
 * numbers) is never decided here: a function then returns False, and NumPy's way takes over.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "float64 has to be computed in float64: elsewhere wn computes with NumPy"
#endif

/* The loops are written once, and made for one dtype each, so that they have no branches. */
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define INLINE static __forceinline
#else
#define INLINE static inline
#endif

/* For processors with AVX2 as well as for all, where the system can choose as it loads the module:
 * that is half as fast again, or twice as fast. */
#if defined(__x86_64__) && defined(__GLIBC__) && (__GNUC__ >= 6 || __clang_major__ >= 14)
#define CLONED __attribute__((target_clones("avx2", "default")))
#else
#define CLONED
#endif

enum {
    /* Sums that are added up side by side. */
    LANES = 16,
    /* Elements of a row, and rows of columns, that are summed in float64; such sums are added to
     * pairs, which lose nothing. */
    MOST_ADDITIONS = 128,
    LONGEST_SUM = MOST_ADDITIONS * LANES,
    /* Rows shorter than this go by columns, as many as fit in the fastest cache: to begin and end a
     * row takes longer than the row. */
    SHORT_ROW = 24,
    COLUMNS = 1024,
};

/* More than twice what a norm is off by, relatively. */
#define SLACK ((MOST_ADDITIONS + SHORT_ROW + 8) * DBL_EPSILON)

typedef enum { F32, F16, BF16, DTYPES } dtype;

/* The distance of 1 to the next number, the smallest normal number, and the largest of all. */
static const struct {
    const char *name;
    double epsilon, smallest, largest;
} formats[DTYPES] = {
    [F32] = {"F32", 0x1p-23, 0x1p-126, 0x1.fffffep127},
    [F16] = {"F16", 0x1p-10, 0x1p-14, 65504},
    [BF16] = {"BF16", 0x1p-7, 0x1p-126, 0x1.fep127},
};

INLINE ptrdiff_t itemsize(dtype type)
{
    return type == F32 ? 4 : 2;
}

typedef struct {
    ptrdiff_t outer, channels, inner;
} shape;

/* high + low, not evaluated. */
typedef struct {
    double high, low;
} pair;

INLINE float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE ptrdiff_t at_most(ptrdiff_t most, ptrdiff_t count)
{
    return count < most ? count : most;
}

/* The power of two that a number above 0 has. */
INLINE double power_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits &= UINT64_C(0x7ff) << 52;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The distance between two numbers of a format around a value of at least 0. */
INLINE double spacing(dtype type, double value)
{
    const double power = power_of(value), smallest = formats[type].smallest;
    return (power > smallest ? power : smallest) * formats[type].epsilon;
}

/* The exponent takes another bias; one of zeros has numbers without a leading 1, and one of ones
 * Inf and NaN. */
INLINE float float_of_half(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    const uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13;
    const uint32_t is_small = magnitude < 0x00800000, is_special = magnitude >= 0x0f800000;
    const uint32_t bits = magnitude + (112u << 23) + is_special * (112u << 23) + (is_small << 23);
    const float value = float_of(bits) - float_of(is_small * (113u << 23));
    return float_of(bits_of(value) | sign);
}

/* To the 24 bits of a float32, which keep whether anything was cut off ("round to odd"): what is
 * rounded to even from there on is rounded only once. */
INLINE float to_odd(double value)
{
    const uint64_t cut = (UINT64_C(1) << 29) - 1;
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = (bits | ((bits & cut) + cut)) & ~cut;
    memcpy(&value, &bits, sizeof bits);
    return (float)value;
}

/* Chosen by masks: compilers leave branches in a loop. */
INLINE uint16_t half_of(double value)
{
    const uint32_t bits = bits_of(to_odd(value)), sign = bits >> 16 & 0x8000;
    const int32_t size = (int32_t)(bits & 0x7fffffff);
    const uint32_t small = bits_of(float_of((uint32_t)size) + 0.5f) - bits_of(0.5f);
    const uint32_t normal = ((uint32_t)size - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
    const uint32_t is_small = -(uint32_t)(size < 113 << 23);
    const uint32_t is_large = -(uint32_t)(size >= 143 << 23);
    const uint32_t is_nan = -(uint32_t)(size > 0x7f800000);
    return (uint16_t)(sign | (small & is_small) | (normal & ~is_small & ~is_large) |
                      (0x7c00 & is_large) | (0x7e00 & is_nan));
}

/* As ml_dtypes does: by way of float32, and what is no number has no other bits set. */
INLINE uint16_t bfloat_of(double value)
{
    const uint32_t bits = bits_of((float)value), even = bits >> 16 & 1;
    const uint32_t nan = (bits >> 16 & 0x8000) | 0x7fc0;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? nan : (bits + 0x7fff + even) >> 16);
}

INLINE double load(dtype type, const char *from)
{
    float single;
    uint16_t half;
    if (type == F32) {
        memcpy(&single, from, sizeof single);
        return single;
    }
    memcpy(&half, from, sizeof half);
    return type == F16 ? float_of_half(half) : float_of((uint32_t)half << 16);
}

INLINE void store(dtype type, char *to, double value)
{
    const float single = (float)value;
    if (type == F32) {
        memcpy(to, &single, sizeof single);
        return;
    }
    const uint16_t half = type == F16 ? half_of(value) : bfloat_of(value);
    memcpy(to, &half, sizeof half);
}

/* Adds x, and what that loses to the low part: many additions lose no more than one. */
INLINE pair plus(pair sum, double x)
{
    const double total = sum.high + x, added = total - sum.high;
    return (pair){total, sum.low + ((sum.high - (total - added)) + (x - added))};
}

INLINE void add_lanes(dtype type, const char *from, double *lanes)
{
    for (int lane = 0; lane < LANES; lane++) {
        const double x = load(type, from + lane * itemsize(type));
        lanes[lane] += x * x;
    }
}

INLINE double row_squares(dtype type, const char *row, ptrdiff_t count)
{
    const ptrdiff_t size = itemsize(type);
    double lanes[LANES] = {0};
    char rest[LANES * sizeof(float)] = {0};
    for (; count >= LANES; count -= LANES, row += LANES * size)
        add_lanes(type, row, lanes);
    memcpy(rest, row, (size_t)(count * size));
    add_lanes(type, rest, lanes);
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++)
            lanes[lane] += lanes[lane + half];
    return lanes[0];
}

INLINE void add_squares(dtype type, const char *v, pair *sums, shape s)
{
    const ptrdiff_t size = itemsize(type), group = COLUMNS / s.inner;
    if (s.inner >= SHORT_ROW) {
        for (ptrdiff_t row = 0; row < s.outer * s.channels; row++) {
            pair *sum = sums + row % s.channels;
            for (ptrdiff_t left = s.inner, step; left > 0; left -= step, v += step * size) {
                step = at_most(LONGEST_SUM, left);
                *sum = plus(*sum, row_squares(type, v, step));
            }
        }
        return;
    }
    for (ptrdiff_t first = 0; first < s.channels; first += group) {
        const ptrdiff_t channels = at_most(group, s.channels - first), count = channels * s.inner;
        for (ptrdiff_t start = 0; start < s.outer; start += MOST_ADDITIONS) {
            const ptrdiff_t end = start + at_most(MOST_ADDITIONS, s.outer - start);
            double columns[COLUMNS] = {0}, *column = columns;
            for (ptrdiff_t o = start; o < end; o++) {
                const char *row = v + (o * s.channels + first) * s.inner * size;
                for (ptrdiff_t i = 0; i < count; i++) {
                    const double x = load(type, row + i * size);
                    columns[i] += x * x;
                }
            }
            for (ptrdiff_t c = first; c < first + channels; c++) {
                double sum = 0;
                for (ptrdiff_t i = 0; i < s.inner; i++)
                    sum += *column++;
                sums[c] = plus(sums[c], sum);
            }
        }
    }
}

/* In v's place. */
INLINE void scale(dtype type, char *v, const double *factors, shape s)
{
    const ptrdiff_t size = itemsize(type), group = COLUMNS / s.inner;
    if (s.inner >= SHORT_ROW) {
        for (ptrdiff_t row = 0; row < s.outer * s.channels; row++, v += s.inner * size) {
            const double factor = factors[row % s.channels];
            for (ptrdiff_t i = 0; i < s.inner; i++)
                store(type, v + i * size, load(type, v + i * size) * factor);
        }
        return;
    }
    for (ptrdiff_t first = 0; first < s.channels; first += group) {
        const ptrdiff_t channels = at_most(group, s.channels - first), count = channels * s.inner;
        double columns[COLUMNS], *column = columns;
        for (ptrdiff_t c = first; c < first + channels; c++)
            for (ptrdiff_t i = 0; i < s.inner; i++)
                *column++ = factors[c];
        for (ptrdiff_t o = 0; o < s.outer; o++) {
            char *row = v + (o * s.channels + first) * s.inner * size;
            for (ptrdiff_t i = 0; i < count; i++)
                store(type, row + i * size, load(type, row + i * size) * columns[i]);
        }
    }
}

#define FOR_ITS_TYPE(call, ...) \
    do { \
        if (type == F32) \
            call(F32, __VA_ARGS__); \
        else if (type == F16) \
            call(F16, __VA_ARGS__); \
        else \
            call(BF16, __VA_ARGS__); \
    } while (0)

CLONED static void add_squares_of(dtype type, const char *v, pair *sums, shape s)
{
    FOR_ITS_TYPE(add_squares, v, sums, s);
}

CLONED static void scale_of(dtype type, char *v, const double *factors, shape s)
{
    FOR_ITS_TYPE(scale, v, factors, s);
}

/* A finite norm as a number of the format; `close` where it may as well be rounded to another. */
static double rounded(dtype type, double norm, bool *close)
{
    const double unit = spacing(type, norm), shift = unit * 0x1p52;
    const double nearest = (norm + shift) - shift;
    *close = fabs(fabs(norm - nearest) - unit / 2) < norm * SLACK;
    return nearest;
}

/* What v is multiplied by: g over the norm, and 1 where g is the norm of v already. False where
 * that is no finite number, or 0/0 but for g = 0 in any direction, or where only the exact sum
 * tells whether it is 1. */
static bool to_factors(dtype type, const char *g, const pair *sums, double *factors,
                       ptrdiff_t channels)
{
    bool usual = true;
    for (ptrdiff_t c = 0; c < channels; c++) {
        const double norm = sqrt(sums[c].high + sums[c].low);
        const double stored = load(type, g + c * itemsize(type));
        bool close;
        const bool matches = rounded(type, norm, &close) == stored;
        usual &= norm <= DBL_MAX && fabs(stored) <= DBL_MAX && (norm > 0 || stored == 0);
        usual &= !(close && fabs(norm - stored) <= spacing(type, norm));
        factors[c] = matches ? 1 : stored / norm;
    }
    return usual;
}

/* False where a norm is 0, or nothing that the dtype can hold, or too near to halfway. */
static bool to_magnitudes(dtype type, const pair *sums, char *g, ptrdiff_t channels)
{
    bool usual = true;
    for (ptrdiff_t c = 0; c < channels; c++) {
        const double norm = sqrt(sums[c].high + sums[c].low);
        bool close;
        const double nearest = rounded(type, norm, &close);
        usual &= norm > 0 && nearest <= formats[type].largest && !close;
        store(type, g + c * itemsize(type), nearest);
    }
    return usual;
}

/* -- as Python calls them -------------------------------------------------------------------- */

static bool type_named(const char *name, dtype *type)
{
    for (*type = F32; *type < DTYPES; ++*type)
        if (!strcmp(name, formats[*type].name))
            return true;
    PyErr_Format(PyExc_ValueError, "no loops for %s", name);
    return false;
}

/* The shape of `v`, from the bytes of all and those of what there is one of for each channel. */
static bool shape_of(dtype type, const Py_buffer *v, const Py_buffer *of_channels,
                     Py_ssize_t bytes_each, Py_ssize_t inner, shape *found)
{
    const Py_ssize_t channels = of_channels->len / bytes_each, size = itemsize(type);
    if (channels > 0 && inner > 0 && of_channels->len % bytes_each == 0 && v->len % size == 0 &&
        inner <= v->len && v->len / size % inner == 0 && v->len / size / inner % channels == 0) {
        *found = (shape){v->len / size / inner / channels, channels, inner};
        return true;
    }
    PyErr_SetString(PyExc_ValueError, "the sizes do not fit");
    return false;
}

static bool equal(Py_ssize_t one, Py_ssize_t other)
{
    if (one != other)
        PyErr_SetString(PyExc_ValueError, "the sizes do not fit");
    return one == other;
}

static PyObject *py_add_squares(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *name;
    Py_buffer v, sums;
    Py_ssize_t inner;
    dtype type;
    shape s;
    if (!PyArg_ParseTuple(args, "sy*w*n", &name, &v, &sums, &inner))
        return NULL;
    const bool fits = type_named(name, &type) && shape_of(type, &v, &sums, sizeof(pair), inner, &s);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        add_squares_of(type, v.buf, sums.buf, s);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&v);
    PyBuffer_Release(&sums);
    return fits ? Py_NewRef(Py_None) : NULL;
}

static PyObject *py_fold(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *name;
    Py_buffer v, g, sums;
    Py_ssize_t inner;
    dtype type;
    shape s;
    if (!PyArg_ParseTuple(args, "sw*y*z*n", &name, &v, &g, &sums, &inner))
        return NULL;
    bool fits = type_named(name, &type) && shape_of(type, &v, &g, itemsize(type), inner, &s);
    bool usual = false;
    pair *own = NULL;
    double *factors = NULL;
    if (fits && sums.buf)
        fits = equal(sums.len, s.channels * (Py_ssize_t)sizeof(pair));
    if (fits) {
        own = sums.buf ? NULL : PyMem_Calloc((size_t)s.channels, sizeof(pair));
        factors = PyMem_Calloc((size_t)s.channels, sizeof(double));
        fits = factors && (own || sums.buf);
        if (!fits)
            PyErr_NoMemory();
    }
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        if (own)
            add_squares_of(type, v.buf, own, s);
        usual = to_factors(type, g.buf, own ? own : sums.buf, factors, s.channels);
        if (usual)
            scale_of(type, v.buf, factors, s);
        Py_END_ALLOW_THREADS
    }
    PyMem_Free(own);
    PyMem_Free(factors);
    PyBuffer_Release(&v);
    PyBuffer_Release(&g);
    PyBuffer_Release(&sums);
    return fits ? PyBool_FromLong(usual) : NULL;
}

static PyObject *py_to_magnitudes(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *name;
    Py_buffer sums, g;
    dtype type;
    shape s;
    PyObject *usual = NULL;
    if (!PyArg_ParseTuple(args, "sy*w*", &name, &sums, &g))
        return NULL;
    if (type_named(name, &type) && shape_of(type, &g, &sums, sizeof(pair), 1, &s) &&
        equal(s.outer, 1))
        usual = PyBool_FromLong(to_magnitudes(type, sums.buf, g.buf, s.channels));
    PyBuffer_Release(&sums);
    PyBuffer_Release(&g);
    return usual;
}

static PyMethodDef methods[] = {
    {"add_squares", py_add_squares, METH_VARARGS,
     "add_squares(dtype, v, sums, inner)\n\n"
     "Add the squares of each channel of v, seen as (outer, channels, inner), to its sum."},
    {"fold", py_fold, METH_VARARGS,
     "fold(dtype, v, g, sums, inner)\n\n"
     "Write g * v / ||v|| in v's place; if not all is usual, leave v alone and return False.\n"
     "The sums are None where v has all of its slices."},
    {"to_magnitudes", py_to_magnitudes, METH_VARARGS,
     "to_magnitudes(dtype, sums, g)\n\n"
     "Write the norms into g, from the sums of their squares; whether all is usual."},
    {0},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "kernel",
    .m_doc = "The loops that every byte of a large checkpoint goes through.\n\n"
             "Sums are two float64 for each channel, whose sum is meant. Dtypes that there are no\n"
             "loops for, and sizes that do not fit, raise ValueError.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit_kernel(void)
{
    return PyModuleDef_Init(&definition);
}
