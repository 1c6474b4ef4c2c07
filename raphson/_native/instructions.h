/* Includes the code in the file TEMPLATE, relative to this folder, for both element types and each instruction set: vectors
   of 128, 256 and 512 bits, or up to 256 where the includer defines WITHOUT_512. The code sees NAME(x), a suffix; REAL, the
   element type; LANES, the number of them in a vector; DOUBLE, defined in double precision; and TARGET, which stands before
   every function. GCC from version 12 on and clang compile it. */

#ifndef REAL /* each element type: this file once more */
#define JOINED(x, type, bits) x##_##type##_##bits
#define JOIN(x, type, bits) JOINED(x, type, bits)
#define NAME(x) JOIN(x, REAL, BITS)

#define REAL float
#define LANES (BITS / 32)
#include "instructions.h"
#undef REAL
#undef LANES

#define REAL double
#define LANES (BITS == 128 ? 4 : BITS / 64) /* two registers each: sums across lanes want four */
#define DOUBLE
#include "instructions.h"
#undef REAL
#undef LANES
#undef DOUBLE

#undef TEMPLATE
#undef WITHOUT_512
#else /* each instruction set: the code */
#define BITS 128
#define TARGET
#include TEMPLATE
#undef BITS
#undef TARGET
#ifdef __x86_64__
#define BITS 256
#define TARGET __attribute__((target("avx2,fma")))
#include TEMPLATE
#undef BITS
#undef TARGET
#ifndef WITHOUT_512
#define BITS 512
#define TARGET __attribute__((target("avx2,fma,avx512f")))
#include TEMPLATE
#undef BITS
#undef TARGET
#endif
#endif
#endif
