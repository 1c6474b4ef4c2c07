/* Products of a sparse matrix by rows (CSR) with a dense one: what SparseBlock multiplies with, called by
   _sparse_product.py. A row of the result is a sum of rows of the dense matrix, which stays in registers; the rows that
   come next are fetched ahead, because they lie anywhere in memory. */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#include "../_parallel.h"

#define AHEAD 12 /* nonzeros */
#define VECTORS 4 /* of a row of the dense matrix, that are summed in one go through a sparse row */

struct sparse {
    const int64_t *starts; /* (rows + 1,) */
    const int32_t *columns;
    const void *values;
    size_t rows, width; /* `width` numbers in a row of both dense matrices: a multiple of 16 */
    const void *dense;
    void *out;
};

/* Where a part of the rows begins: each part has about as many nonzeros. */
static size_t first_row(const struct sparse *s, size_t part, size_t parts)
{
    const int64_t nonzeros = s->starts[s->rows] - s->starts[0];
    const int64_t wanted = s->starts[0] + (int64_t)((double)nonzeros * (double)part / (double)parts);
    size_t low = 0, high = s->rows;
    if (part == parts)
        return s->rows;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (s->starts[middle] < wanted)
            low = middle + 1;
        else
            high = middle;
    }
    return part ? low : 0;
}

#define TEMPLATE "data/_sparse_rows.h"
#define WITHOUT_512
#include "../_each_instruction_set.h"

static void (*product_double)(const void *, size_t, size_t) = part_double_128;
static void (*product_single)(const void *, size_t, size_t) = part_float_128;

/* starts, columns, values, rows, width, dense, out, single, parts */
static PyObject *product(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 9)
        return PyErr_Format(PyExc_TypeError, "expected 9 arguments, got %zd", count);
    const struct sparse s = {PyLong_AsVoidPtr(args[0]), PyLong_AsVoidPtr(args[1]), PyLong_AsVoidPtr(args[2]),
                             PyLong_AsSize_t(args[3]),  PyLong_AsSize_t(args[4]),  PyLong_AsVoidPtr(args[5]),
                             PyLong_AsVoidPtr(args[6])};
    const int single = PyObject_IsTrue(args[7]);
    const size_t parts = PyLong_AsSize_t(args[8]);
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    run_team(single ? product_single : product_double, &s, parts, parts);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"product", (PyCFunction)(void (*)(void))product, METH_FASTCALL, NULL},
                                {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT, .m_name = "_sparse", .m_size = -1,
                                        .m_methods = methods};

PyMODINIT_FUNC PyInit__sparse(void)
{
    find_threads();
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        product_double = part_double_256;
        product_single = part_float_256;
    }
#endif
    return PyModule_Create(&definition);
}
