// The library's face: which instruction sets were built and this processor has, and the two calls.
#include "msda_cpu.h"

#define MSDA_PUBLIC __attribute__((visibility("default")))

MSDA_PUBLIC int msda_abi(void) { return MSDA_ABI; }

// 0 portable, 1 AVX2, 2 AVX-512.
MSDA_PUBLIC int msda_best(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

MSDA_PUBLIC void msda_forward(const struct msda_problem *problem, int set) {
#if defined(__x86_64__)
    if (set >= 2) return msda_forward_avx512(problem);
    if (set == 1) return msda_forward_avx2(problem);
#endif
    msda_forward_portable(problem);
}

MSDA_PUBLIC void msda_backward(const struct msda_problem *problem, int set) {
#if defined(__x86_64__)
    if (set >= 2) return msda_backward_avx512(problem);
    if (set == 1) return msda_backward_avx2(problem);
#endif
    msda_backward_portable(problem);
}
