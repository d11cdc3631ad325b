/* The loops that every byte of a large checkpoint goes through, for processors with AVX2.
 *
 * NumPy does all of this as well, and to the last bits that are stored, where this module
 * was not built or the processor is another: they go over a block once for each operation, where a
 * loop here does everything on the way. What is unusual (NaN, Inf, slices without a direction,
 * norms too near to halfway between two numbers) is never decided here: the functions say that they
 * have met it, and NumPy's way takes over.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if !defined(__x86_64__) || !defined(__GNUC__)
#error "only for x86-64 with GCC or Clang: elsewhere wn computes with NumPy"
#endif

#include <cpuid.h>
#include <immintrin.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#include "weight_norm.h"
#include "weight_norm_pairs.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static bool type_named(const char *name, dtype *type)
{
    static const char *const names[] = {[F32] = "F32", [F16] = "F16", [BF16] = "BF16", [F64] = "F64"};
    for (int known = F32; known <= F64; known++) {
        if (!strcmp(name, names[known])) {
            *type = (dtype)known;
            return true;
        }
    }
    PyErr_Format(PyExc_ValueError, "no loops for %s", name);
    return false;
}

/* The shape of `v`, from its bytes and those of a number for each channel. */
static bool shape_of(dtype type, const Py_buffer *v, const Py_buffer *of_channels,
                     Py_ssize_t inner, shape *found)
{
    const Py_ssize_t channels = of_channels->len / sizeof(pair);
    const Py_ssize_t numel = v->len / itemsize(type);
    Py_ssize_t columns;
    if (channels > 0 && inner > 0 && !__builtin_mul_overflow(channels, inner, &columns) &&
        numel % columns == 0 && v->len % itemsize(type) == 0) {
        *found = (shape){numel / columns, channels, inner};
        return true;
    }
    PyErr_SetString(PyExc_ValueError, "the sizes of v, its channels and its rows do not fit");
    return false;
}

/* Whether g has as many elements as there are channels. */
static bool fits_channels(dtype type, const Py_buffer *g, const Py_buffer *of_channels, shape *found)
{
    if (!shape_of(type, g, of_channels, 1, found))
        return false;
    if (found->outer == 1)
        return true;
    PyErr_SetString(PyExc_ValueError, "the sizes of g and its channels do not fit");
    return false;
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
    const bool fits = type_named(name, &type) && shape_of(type, &v, &sums, inner, &s);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        if (type == F64)
            add_pair_squares(v.buf, sums.buf, s);
        else
            add_squares_of(type, v.buf, sums.buf, s);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&v);
    PyBuffer_Release(&sums);
    return fits ? Py_NewRef(Py_None) : NULL;
}

static PyObject *py_scale(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *name;
    Py_buffer v, factors, w;
    Py_ssize_t inner;
    dtype type;
    shape s;
    if (!PyArg_ParseTuple(args, "sy*y*w*n", &name, &v, &factors, &w, &inner))
        return NULL;
    bool usual = true, fits = type_named(name, &type) && shape_of(type, &v, &factors, inner, &s);
    if (fits && v.len != w.len) {
        PyErr_SetString(PyExc_ValueError, "w is not as large as v");
        fits = false;
    }
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        if (type == F64)
            usual = scale_by_pairs(v.buf, factors.buf, w.buf, s);
        else
            scale_by(type, v.buf, factors.buf, w.buf, s);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&v);
    PyBuffer_Release(&factors);
    PyBuffer_Release(&w);
    return fits ? PyBool_FromLong(usual) : NULL;
}

static PyObject *py_to_factors(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *name;
    Py_buffer g, sums;
    Py_ssize_t terms;
    dtype type;
    shape s;
    PyObject *usual = NULL;
    if (!PyArg_ParseTuple(args, "sy*w*n", &name, &g, &sums, &terms))
        return NULL;
    if (type_named(name, &type) && fits_channels(type, &g, &sums, &s))
        usual = PyBool_FromLong(type == F64
                                    ? to_pair_factors(g.buf, sums.buf, s.channels)
                                    : to_factors_of(type, g.buf, sums.buf, s.channels, terms));
    PyBuffer_Release(&g);
    PyBuffer_Release(&sums);
    return usual;
}

static PyObject *py_to_magnitudes(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *name;
    Py_buffer sums, g;
    Py_ssize_t terms;
    dtype type;
    shape s;
    PyObject *usual = NULL;
    if (!PyArg_ParseTuple(args, "sy*w*n", &name, &sums, &g, &terms))
        return NULL;
    if (type_named(name, &type) && fits_channels(type, &g, &sums, &s))
        usual = PyBool_FromLong(type == F64
                                    ? to_pair_magnitudes(sums.buf, g.buf, s.channels)
                                    : to_magnitudes_of(type, sums.buf, g.buf, s.channels, terms));
    PyBuffer_Release(&sums);
    PyBuffer_Release(&g);
    return usual;
}

static PyMethodDef methods[] = {
    {"add_squares", py_add_squares, METH_VARARGS,
     "add_squares(dtype, v, sums, inner)\n\n"
     "Add the squares of each channel of v, seen as (outer, channels, inner), to its sum."},
    {"scale", py_scale, METH_VARARGS,
     "scale(dtype, v, factors, w, inner)\n\n"
     "Write v times its channels' factors into w, which may be v; whether all is usual."},
    {"to_factors", py_to_factors, METH_VARARGS,
     "to_factors(dtype, g, sums, terms)\n\n"
     "Put g over the norms in the place of the sums, of so many squares; whether all is usual."},
    {"to_magnitudes", py_to_magnitudes, METH_VARARGS,
     "to_magnitudes(dtype, sums, g, terms)\n\n"
     "Write the norms into g, of sums of so many squares; whether all is usual."},
    {0},
};

/* Asked of the processor itself: not every compiler's __builtin_cpu_supports knows "f16c". */
static bool has_f16c(void)
{
    unsigned int eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

static int begin(PyObject *Py_UNUSED(module))
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !has_f16c()) {
        PyErr_SetString(PyExc_ImportError, "this processor has not the instructions for it");
        return -1;
    }
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, begin}, {0}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "kernel",
    .m_doc = "The loops that every byte of a large checkpoint goes through.\n\n"
             "Sums and factors are two float64 for each channel, whose sum is meant.\n"
             "Dtypes that there are no loops for, and sizes that do not fit, raise ValueError.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit_kernel(void)
{
    return PyModuleDef_Init(&definition);
}
