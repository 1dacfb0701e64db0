// Processors with AVX2 and FMA: 32-byte vectors; 12 of 16 registers hold a tile of scores.

#if defined(__x86_64__)
#include <immintrin.h>

#define INSTRUCTION_SET avx2
#define TARGET_FEATURES "avx2,fma"
#define VECTOR_BYTES 32
#define ROWS_PER_GROUP 6
#include "instruction_set.h"

#endif
