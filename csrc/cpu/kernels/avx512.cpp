// Processors with AVX-512: 64-byte vectors; 24 of 32 registers hold a tile of scores.

#if defined(__x86_64__)
#include <immintrin.h>

#define INSTRUCTION_SET avx512
#define TARGET_FEATURES "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"
#define VECTOR_BYTES 64
#define ROWS_PER_GROUP 12
#include "instruction_set.h"

#endif
