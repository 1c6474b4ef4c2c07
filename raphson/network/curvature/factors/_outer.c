/* Sums of outer products, x x^T over positions: each number above the diagonal once, at the speed of a matrix product.
   A product of two matrices would make every number twice; called by _gram.py.

   Rows are packed into panels of a few vectors of columns, so that a tile of some columns by one panel of sums stays in
   registers while it runs through the rows (Goto and van de Geijn 2008, Anatomy of high-performance matrix multiplication). */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../../_parallel.h"

#define FEW 256        /* columns up to which threads share out rows, not squares: these are few, and stay in the cache (measured) */
#define CACHE 12288    /* bytes of a panel that are run through at a time: two of them stay in the first-level cache */
#define PACKED 1048576 /* numbers that are packed at a time */
#define PART 131072    /* multiplications that are worth a thread of their own */

/* An array (b, d, length) with its strides, whose sums over b and length are added to out, (d, d). */
struct outer {
    size_t b, d, length;
    ptrdiff_t of_b, of_d, of_length, of_row; /* of_row: of out */
    int add;                                 /* or overwrite */
    const void *x;
    void *out;
    /* the rows, one for each position, that are packed: */
    size_t from, rows;
    void *packed;
};

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The first cache line that begins in a block. */
static void *aligned(void *block)
{
    return (void *)(((uintptr_t)block + 63) / 64 * 64);
}

#define TEMPLATE "network/curvature/factors/_outer_tiles.h"
#include "../../../_each_instruction_set.h"

static int (*sum_single)(const struct outer *, size_t), (*sum_double)(const struct outer *, size_t);

/* single, groups, b, d, length, strides of groups, b, d and length, x, strides of groups and rows of out, out, add, threads */
static PyObject *sum(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 15)
        return PyErr_Format(PyExc_TypeError, "expected 15 arguments, got %zd", count);
    const int single = PyObject_IsTrue(args[0]);
    const size_t groups = PyLong_AsSize_t(args[1]), size = single ? sizeof(float) : sizeof(double);
    struct outer s = {.b = PyLong_AsSize_t(args[2]), .d = PyLong_AsSize_t(args[3]), .length = PyLong_AsSize_t(args[4]),
                      .of_b = PyLong_AsSsize_t(args[6]), .of_d = PyLong_AsSsize_t(args[7]),
                      .of_length = PyLong_AsSsize_t(args[8]), .of_row = PyLong_AsSsize_t(args[11]),
                      .add = PyObject_IsTrue(args[13])};
    const ptrdiff_t of_group = PyLong_AsSsize_t(args[5]) * (ptrdiff_t)size;
    const ptrdiff_t of_out = PyLong_AsSsize_t(args[10]) * (ptrdiff_t)size;
    const char *x = PyLong_AsVoidPtr(args[9]);
    char *out = PyLong_AsVoidPtr(args[12]);
    const size_t threads = PyLong_AsSize_t(args[14]);
    if (PyErr_Occurred())
        return NULL;
    if (s.length == 1)
        s.of_length = s.of_b;
    if (s.length == 1 || s.of_b == (ptrdiff_t)s.length * s.of_length) { /* steps of one length all through */
        s.length *= s.b;
        s.b = 1;
    }
    int failed = 0;
    Py_BEGIN_ALLOW_THREADS
    for (size_t g = 0; g < groups && !failed; g++) {
        s.x = x + (ptrdiff_t)g * of_group;
        s.out = out + (ptrdiff_t)g * of_out;
        failed = (single ? sum_single : sum_double)(&s, threads);
    }
    Py_END_ALLOW_THREADS
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

#define CHOOSE(WIDTH) (sum_single = sum_float_##WIDTH, sum_double = sum_double_##WIDTH)
#include "../../../_vectors.h"

static PyMethodDef methods[] = {{"sum", (PyCFunction)(void (*)(void))sum, METH_FASTCALL, NULL},
                                {"use_vectors", use_vectors, METH_O, NULL},
                                {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT, .m_name = "_outer", .m_size = -1,
                                        .m_methods = methods};

PyMODINIT_FUNC PyInit__outer(void)
{
    choose_longest();
    find_threads();
    return PyModule_Create(&definition);
}
