/* Includes the kernels for both element types and each instruction set: vectors of 128, 256 and 512 bits. They see NAME(x), a
   suffix; REAL, the element type; DOUBLE, defined in double precision; and TARGET, which stands before every function. GCC from
   version 12 on and clang compile them. */

#ifndef REAL /* each element type: this file once more */
#define JOINED(a, b) a##_##b
#define JOIN(a, b) JOINED(a, b)
#define NAME(x) JOIN(JOIN(x, REAL), BITS)
#define TARGET JOIN(INSTRUCTIONS, BITS)
#define INSTRUCTIONS_128
#define INSTRUCTIONS_256 __attribute__((target("avx2,fma")))
#define INSTRUCTIONS_512 __attribute__((target("avx2,fma,avx512f")))

#define REAL double
#define DOUBLE
#include "instructions.h"
#undef DOUBLE
#undef REAL
#define REAL float /* after double precision, whose partition function it has */
#include "instructions.h"
#else /* each instruction set: the code */
#define BITS 128
#include "linear_sums.h"
#undef BITS
#ifdef __x86_64__
#define BITS 256
#include "linear_sums.h"
#undef BITS
#define BITS 512
#include "linear_sums.h"
#undef BITS
#endif
#endif
