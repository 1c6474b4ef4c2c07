/* Sums over positions of gradients, and of gradients times values, in one pass; called by _sums.py.

   What is bound by memory here is read once: matrix products would make every pair of channels, and elementwise ones would
   write the products down. */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#include "../../_parallel.h"

#define FLUSH 256     /* positions after which running sums are put away: rounding errors grow with their number */
#define PART 262144   /* numbers that are worth a thread of their own */

/* Gradients (k, n, positions, channels) and values (n, positions, channels), with sums (k, n, channels). */
struct sums {
    size_t k, n, positions, channels;
    ptrdiff_t of_k, of_n, of_position, of_channel;
    ptrdiff_t value_of_n, value_of_position, value_of_channel;
    const void *g, *z;
    void *products, *plain;
};

#define TEMPLATE "network/layers/_position_sums_rows.h"
#include "../../_each_instruction_set.h"

static void (*sum_single)(const void *, size_t, size_t), (*sum_double)(const void *, size_t, size_t);

/* single, k, n, positions, channels, strides of g (4), strides of z (3), g, z, products, plain, threads */
static PyObject *sum(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 17)
        return PyErr_Format(PyExc_TypeError, "expected 17 arguments, got %zd", count);
    const int single = PyObject_IsTrue(args[0]);
    struct sums s = {.k = PyLong_AsSize_t(args[1]), .n = PyLong_AsSize_t(args[2]),
                     .positions = PyLong_AsSize_t(args[3]), .channels = PyLong_AsSize_t(args[4]),
                     .of_k = PyLong_AsSsize_t(args[5]), .of_n = PyLong_AsSsize_t(args[6]),
                     .of_position = PyLong_AsSsize_t(args[7]), .of_channel = PyLong_AsSsize_t(args[8]),
                     .value_of_n = PyLong_AsSsize_t(args[9]), .value_of_position = PyLong_AsSsize_t(args[10]),
                     .value_of_channel = PyLong_AsSsize_t(args[11]), .g = PyLong_AsVoidPtr(args[12]),
                     .z = PyLong_AsVoidPtr(args[13]), .products = PyLong_AsVoidPtr(args[14]),
                     .plain = PyLong_AsVoidPtr(args[15])};
    const size_t threads = PyLong_AsSize_t(args[16]);
    if (PyErr_Occurred())
        return NULL;
    size_t parts = 1 + s.k * s.n * s.positions * s.channels / PART;
    if (parts > s.k * s.n)
        parts = s.k * s.n;
    Py_BEGIN_ALLOW_THREADS
    run_team(single ? sum_single : sum_double, &s, parts, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

#define CHOOSE(WIDTH) (sum_single = sum_float_##WIDTH, sum_double = sum_double_##WIDTH)
#include "../../_vectors.h"

static PyMethodDef methods[] = {{"sum", (PyCFunction)(void (*)(void))sum, METH_FASTCALL, NULL},
                                {"use_vectors", use_vectors, METH_O, NULL},
                                {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT, .m_name = "_position_sums", .m_size = -1,
                                        .m_methods = methods};

PyMODINIT_FUNC PyInit__position_sums(void)
{
    choose_longest();
    find_threads();
    return PyModule_Create(&definition);
}
