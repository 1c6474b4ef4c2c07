/* Includes the code in the file TEMPLATE, relative to this folder, for both element types and each instruction set: vectors of
   128, 256 and 512 bits, or up to 256 where the includer defines WITHOUT_512. The code sees NAME(x), a suffix; REAL, the element
   type; INTEGER, one as wide; LANES, the number of them in a vector; SINGLE(x), the suffix of the same instruction set in single
   precision; and DOUBLE, defined in double precision, which comes last. */

#ifndef REAL /* each element type: this file once more */
#define JOINED(x, type, bits) x##_##type##_##bits
#define JOIN(x, type, bits) JOINED(x, type, bits)
#define NAME(x) JOIN(x, REAL, BITS)
#define SINGLE(x) JOIN(x, float, BITS)

#define REAL float
#define INTEGER int32_t
#define LANES (BITS / 32)
#include "_each_instruction_set.h"
#undef REAL
#undef INTEGER
#undef LANES

#define REAL double
#define INTEGER int64_t
#define LANES (BITS == 128 ? 4 : BITS / 64) /* two registers each: sums across lanes want four */
#define DOUBLE
#include "_each_instruction_set.h"
#undef REAL
#undef INTEGER
#undef LANES
#undef DOUBLE

#undef JOINED
#undef JOIN
#undef NAME
#undef SINGLE
#undef TEMPLATE
#else /* each instruction set: the code */
#define BITS 128
#include TEMPLATE
#undef BITS
#ifdef __x86_64__
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define BITS 256
#include TEMPLATE
#undef BITS
#ifndef WITHOUT_512
#pragma GCC target("avx512f")
#define BITS 512
#include TEMPLATE
#undef BITS
#endif
#pragma GCC pop_options
#endif
#endif
