/* Includes the kernels for both element types and each instruction set: vectors of 128, 256 and 512 bits. They see NAME(x), a
   suffix; REAL, the element type; DOUBLE, defined in double precision; and TARGET, which stands before every function. GCC from
   version 12 on and clang compile them. */

#ifndef REAL /* each element type: this file once more */
#define JOINED(x, type, bits) x##_##type##_##bits
#define JOIN(x, type, bits) JOINED(x, type, bits)
#define NAME(x) JOIN(x, REAL, BITS)

#define REAL float
#include "instructions.h"
#undef REAL
#define REAL double
#define DOUBLE
#include "instructions.h"
#else /* each instruction set: the code */
#define BITS 128
#define TARGET
#include "linear_sums.h"
#undef BITS
#undef TARGET
#ifdef __x86_64__
#define BITS 256
#define TARGET __attribute__((target("avx2,fma")))
#include "linear_sums.h"
#undef BITS
#undef TARGET
#define BITS 512
#define TARGET __attribute__((target("avx2,fma,avx512f")))
#include "linear_sums.h"
#undef BITS
#undef TARGET
#endif
#endif
