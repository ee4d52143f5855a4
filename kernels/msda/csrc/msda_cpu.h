// What Python hands to the CPU back end: one plain struct, mirrored in cpu.py. No torch, no Python, no C++ library.
#pragma once
#include <stdint.h>

// Raised whenever the struct or a function's meaning changes: a library built from older source is then not used.
#define MSDA_ABI 1

enum msda_type { MSDA_FLOAT = 0, MSDA_DOUBLE = 1, MSDA_BFLOAT16 = 2, MSDA_HALF = 3 };

// Runs fn(data) on that many threads at once, the caller among them: GOMP_parallel of the OpenMP library torch brings.
typedef void (*msda_team)(void (*fn)(void *), void *data, unsigned threads, unsigned flags);

struct msda_problem {
    // Sizes: pictures, places of all levels, heads, channels of a head, queries, levels, points.
    int64_t batch, places, heads, depth, queries, levels, points;
    const int64_t *shapes;   // height, width of each level
    const void *value;       // [batch, places, heads, depth] in `type`
    const uint8_t *mask;     // [batch, places], 1 where padding; or null
    const void *positions;   // [.., .., heads, levels, points, 2]: locations, or offsets; float, or double with doubles
    const void *shares;      // [.., .., heads, levels, points]: weights, or logits; same type
    const void *reference;   // [1 or batch, queries, reference_levels, reference_numbers]; null: positions are locations
    int64_t position_picture, position_query;  // elements from one picture, one query to the next
    int64_t share_picture, share_query;
    int64_t reference_picture, reference_levels, reference_numbers;
    void *out;               // [batch, queries, heads, depth] in `type`
    // Backward only: value, gradients and all other tensors in float or double, contiguous, reference null.
    const void *grad;        // of out
    void *grad_value, *grad_positions, *grad_shares;
    int32_t type, threads;
    msda_team team;          // null: the caller works alone
};

// One set of these for each instruction set; the suffix names it.
#define MSDA_DECLARE(suffix)                                  \
    void msda_forward_##suffix(const struct msda_problem *);  \
    void msda_backward_##suffix(const struct msda_problem *);
#ifdef __cplusplus
extern "C" {
#endif
MSDA_DECLARE(portable)
MSDA_DECLARE(avx2)
MSDA_DECLARE(avx512)
#ifdef __cplusplus
}
#endif
