/* The C face of the CUDA core: device pointers, sizes and a stream; no header of torch or Python.

   Nothing is copied to the device, nothing waits for it and nothing is allocated, so every call may stand in a captured
   graph. Shapes travel by value with the launch. Source of the operator: Deformable DETR (Zhu et al. 2020). */
#ifndef MSDA_CUDA_H
#define MSDA_CUDA_H

#include <stdint.h>

#define MSDA_CUDA_ABI 1
#define MSDA_LEVELS 8

#ifdef __cplusplus
extern "C" {
#endif

/* Types by number. "Wide" is what sums are made in: float64 for float64, float32 for all others. */
enum { MSDA_FLOAT32 = 0, MSDA_FLOAT64 = 1, MSDA_BFLOAT16 = 2, MSDA_FLOAT16 = 3 };

/* What a call is about. Steps count numbers, not bytes; within a query, positions are [M, L, P, 2] and shares [M, L, P]
   end to end; value is [N, S, M, D] and the output [N, Q, M, D], end to end throughout. */
struct msda_cuda_problem {
    int64_t batch, places, queries;
    int64_t position_picture, position_query, share_picture, share_query;
    int64_t reference_picture, reference_query, reference_level; /* 0 where pictures or levels share one */
    int32_t heads, depth, levels, points;
    int32_t type;              /* of value and output */
    int32_t side;              /* of positions and shares: that type, or its wide one */
    int32_t reference_numbers; /* 0 positions are locations; 2 offsets around points; 4 offsets around boxes */
    int32_t height[MSDA_LEVELS], width[MSDA_LEVELS];
};

int msda_cuda_abi(void);

/* Plain: positions are locations, shares are weights, reference and mask are null. Fused: offsets, logits, reference
   points in the wide type, mask null or one byte a place (not 0: padding). Returns 0, a cudaError_t, or -1 for a problem
   that does not fit the kernels' limits. */
int msda_cuda_forward(const struct msda_cuda_problem *problem, const void *value, const void *positions,
                      const void *shares, const void *reference, const uint8_t *mask, void *out, void *stream);

/* Gradients, all in the wide type and end to end: grad_value [N, S, M, D] and grad_reference (the reference's own steps)
   must hold zeros, as many queries add to them; grad_positions and grad_shares are written. */
int msda_cuda_backward(const struct msda_cuda_problem *problem, const void *grad, const void *value,
                       const void *positions, const void *shares, const void *reference, const uint8_t *mask,
                       void *grad_value, void *grad_reference, void *grad_positions, void *grad_shares, void *stream);

/* What a returned number means. */
const char *msda_cuda_error(int code);

#ifdef __cplusplus
}
#endif
#endif
