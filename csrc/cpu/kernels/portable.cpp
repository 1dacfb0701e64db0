// Any processor: 16-byte vectors, which is SSE2 on x86-64 and NEON on arm64.

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INSTRUCTION_SET portable
#define VECTOR_BYTES 16
#define ROWS_PER_GROUP 4
#include "instruction_set.h"
