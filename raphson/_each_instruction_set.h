/* Includes the code in the file TEMPLATE, relative to this folder, for both element types and each instruction set: vectors of
   128, 256 and 512 bits, or up to 256 where the includer defines WITHOUT_512. The code sees NAME(x), a suffix; REAL, the element
   type; INTEGER, one as wide; LANES, the number of them in a vector; in double precision, which comes last, also DOUBLE, and
   SINGLE(x), the suffix of the code in single precision. */

#define REAL float
#define INTEGER int32_t
#define NAME(x) x##_float_128
#define LANES 4
#include TEMPLATE
#undef NAME
#undef LANES
#ifdef __x86_64__
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define NAME(x) x##_float_256
#define LANES 8
#include TEMPLATE
#undef NAME
#undef LANES
#ifndef WITHOUT_512
#pragma GCC target("avx512f")
#define NAME(x) x##_float_512
#define LANES 16
#include TEMPLATE
#undef NAME
#undef LANES
#endif
#pragma GCC pop_options
#endif
#undef REAL
#undef INTEGER

#define REAL double
#define INTEGER int64_t
#define DOUBLE
#define NAME(x) x##_double_128
#define SINGLE(x) x##_float_128
#define LANES 4 /* two registers each: sums across lanes want four */
#include TEMPLATE
#undef NAME
#undef SINGLE
#undef LANES
#ifdef __x86_64__
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define NAME(x) x##_double_256
#define SINGLE(x) x##_float_256
#define LANES 4
#include TEMPLATE
#undef NAME
#undef SINGLE
#undef LANES
#ifndef WITHOUT_512
#pragma GCC target("avx512f")
#define NAME(x) x##_double_512
#define SINGLE(x) x##_float_512
#define LANES 8
#include TEMPLATE
#undef NAME
#undef SINGLE
#undef LANES
#endif
#pragma GCC pop_options
#endif
#undef REAL
#undef INTEGER
#undef DOUBLE
#undef TEMPLATE
