/* Which instruction set the code that was compiled for several of them takes; to be included after that code. The includer
   defines CHOOSE(WIDTH), which takes the functions for vectors of 128, 256 or 512 bits. */

#ifndef RAPHSON_VECTORS_H
#define RAPHSON_VECTORS_H

/* Take vectors of so many bits; returns whether the processor has them. */
static int choose(long bits)
{
    if (bits == 128)
        CHOOSE(128);
#ifdef __x86_64__
    else if (bits == 256 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        CHOOSE(256);
    else if (bits == 512 && __builtin_cpu_supports("avx512f"))
        CHOOSE(512);
#endif
    else
        return 0;
    return 1;
}

/* Take the longest vectors that the processor has. */
static void choose_longest(void)
{
#ifdef __x86_64__
    __builtin_cpu_init();
#endif
    for (long bits = 512; !choose(bits); bits /= 2)
        ;
}

/* For tests: the function `choose` of the module. */
static PyObject *use_vectors(PyObject *Py_UNUSED(module), PyObject *bits)
{
    const long wanted = PyLong_AsLong(bits);
    if (PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(choose(wanted));
}

#endif
