#pragma once

namespace nerve_kernels::cpu {

enum class InstructionSet { portable, avx2, avx512 };

// The best this processor runs, found once. Like torch's own kernels it obeys ATEN_CPU_CAPABILITY ("default", "avx2",
// "avx512"), which can only lower the choice.
InstructionSet best_instruction_set();

}  // namespace nerve_kernels::cpu
