// Multi-scale deformable attention on CUDA devices: forward and backward, plain or from raw projections.
//
// A group of lanes of one warp answers one (picture, head, query). First the lanes share out its samples and work out
// where each lies and what it weighs (softmax and reference points included), into shared memory; then every lane walks
// over all samples for its own 16 bytes of channels. So the address work is done once, not once a channel, and no block
// ever waits for another warp. Neighbouring groups hold neighbouring queries of one head: what they gather overlaps in
// the first cache. Compiled as plain C++ with MSDA_ON_CPU, the same source runs on a stand-in for the device (tests).

#include "msda_cuda.h"

#ifdef MSDA_ON_CPU
#include "cuda_on_cpu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define MSDA_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define MSDA_LAUNCH(kernel, grid, threads, bytes, stream, ...) kernel<<<grid, threads, bytes, stream>>>(__VA_ARGS__)
#endif

namespace {

constexpr int kThreads = 128;
constexpr int kTile = 16;  // samples of one group that lie in shared memory at a time
constexpr int kLeastLanes = 4;
constexpr unsigned kAll = 0xffffffffu;

typedef msda_cuda_problem Problem;

template <typename T> struct Wide { typedef float type; };
template <> struct Wide<double> { typedef double type; };

__device__ __forceinline__ float widened(float x) { return x; }
__device__ __forceinline__ double widened(double x) { return x; }
__device__ __forceinline__ float widened(__half x) { return __half2float(x); }
__device__ __forceinline__ float widened(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void narrow(float x, float *to) { *to = x; }
__device__ __forceinline__ void narrow(double x, double *to) { *to = x; }
__device__ __forceinline__ void narrow(float x, __half *to) { *to = __float2half(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16 *to) { *to = __float2bfloat16(x); }

__device__ __forceinline__ float grown(float x) { return expf(x); }
__device__ __forceinline__ double grown(double x) { return exp(x); }
__device__ __forceinline__ float below(float x) { return floorf(x); }
__device__ __forceinline__ double below(double x) { return floor(x); }

// Channels that one lane loads and stores in one go.
template <typename T, int CHANNELS> struct alignas(sizeof(T) * CHANNELS) Pack { T at[CHANNELS]; };

// One sample: the four corners' rows in the flattened maps (-1: outside or padding, counts as zero), where between them
// it lies, and its weight. Corners in the order upper left, upper right, lower left, lower right.
template <typename A> struct alignas(16) Sample {
    int row[4];
    A x, y, weight;
};

// How the lanes of a warp are shared out: `lanes` hold the channels of one query, `split` such rows share its samples.
struct Layout {
    int lanes, split, groups;
    __device__ __forceinline__ int width() const { return lanes * split; }
};

// Where the numbers of one (picture, head, query) are.
struct Query {
    int64_t position, share, reference, out, value, mask;
};

__device__ __forceinline__ Query query_at(const Problem &p, int picture, int head, int64_t query) {
    const int64_t samples = int64_t(p.levels) * p.points, channels = int64_t(p.heads) * p.depth;
    Query at;
    at.position = picture * p.position_picture + query * p.position_query + head * samples * 2;
    at.share = picture * p.share_picture + query * p.share_query + head * samples;
    at.reference = picture * p.reference_picture + query * p.reference_query;
    at.out = (picture * p.queries + query) * channels + int64_t(head) * p.depth;
    at.value = picture * p.places * channels + int64_t(head) * p.depth;
    at.mask = picture * p.places;
    return at;
}

// Softmax over all samples of a query, two numbers of it: the greatest logit and the sum of exp(logit - greatest).
template <typename A> struct Softmax { A greatest, sum; };

template <typename A, typename C>
__device__ __forceinline__ Softmax<A> softmax_of(const C *logits, int samples, int thread, int width) {
    Softmax<A> found;
    found.greatest = widened(logits[0]);
    for (int s = thread; s < samples; s += width) {
        const A logit = widened(logits[s]);
        found.greatest = logit > found.greatest ? logit : found.greatest;
    }
    for (int far = width / 2; far; far /= 2) {
        const A other = __shfl_xor_sync(kAll, found.greatest, far);
        found.greatest = other > found.greatest ? other : found.greatest;
    }
    found.sum = 0;
    for (int s = thread; s < samples; s += width) found.sum += grown(A(widened(logits[s])) - found.greatest);
    for (int far = width / 2; far; far /= 2) found.sum += __shfl_xor_sync(kAll, found.sum, far);
    return found;
}

// Sample number s of a query; `starts` holds where each level begins.
template <bool FUSED, typename A, typename C>
__device__ __forceinline__ Sample<A> sample_at(const Problem &p, int s, const C *positions, const C *shares,
                                               const A *reference, const uint8_t *mask, const Softmax<A> &softmax) {
    const int level = s / p.points;
    int start = 0, height = 0, width = 0;
#pragma unroll
    for (int l = 0; l < MSDA_LEVELS; l++) {  // compile-time indices keep the shapes out of local memory
        if (l < level) start += p.height[l] * p.width[l];
        if (l == level) height = p.height[l], width = p.width[l];
    }
    A x = widened(positions[2 * s]), y = widened(positions[2 * s + 1]), weight = widened(shares[s]);
    if (FUSED) {
        const A *around = reference + level * p.reference_level;
        if (p.reference_numbers == 2) {
            x = around[0] * width + x, y = around[1] * height + y;
        } else {
            x = (around[0] + x / p.points * around[2] * A(0.5)) * width;
            y = (around[1] + y / p.points * around[3] * A(0.5)) * height;
        }
        weight = grown(weight - softmax.greatest) / softmax.sum;
    } else {
        x *= width, y *= height;
    }
    x -= A(0.5), y -= A(0.5);  // pixel centres lie at half-integers
    Sample<A> sample;
    sample.row[0] = sample.row[1] = sample.row[2] = sample.row[3] = -1;
    sample.x = sample.y = 0;
    sample.weight = weight;
    // Also false for what is not a number; what passes fits an int.
    if (x > -1 && y > -1 && x < width && y < height) {
        const A left = below(x), top = below(y);
        const int column = int(left), line = int(top);
        sample.x = x - left, sample.y = y - top;
#pragma unroll
        for (int corner = 0; corner < 4; corner++) {
            const int c = column + (corner & 1), r = line + (corner >> 1);
            if (c >= 0 && r >= 0 && c < width && r < height) {
                const int row = start + r * width + c;
                if (!FUSED || !mask || !mask[row]) sample.row[corner] = row;
            }
        }
    }
    return sample;
}

template <typename A> __device__ __forceinline__ void corner_shares(const Sample<A> &sample, A share[4]) {
    share[0] = (1 - sample.y) * (1 - sample.x), share[1] = (1 - sample.y) * sample.x;
    share[2] = sample.y * (1 - sample.x), share[3] = sample.y * sample.x;
}

template <typename T, int CHANNELS>
__device__ __forceinline__ void gather(const Sample<typename Wide<T>::type> &sample, const T *value, int64_t row_step,
                                       Pack<T, CHANNELS> corner[4]) {
    typedef Pack<T, CHANNELS> Part;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        corner[k] = Part{};
        if (sample.row[k] >= 0) corner[k] = *reinterpret_cast<const Part *>(value + sample.row[k] * row_step);
    }
}

template <typename T, typename C, int CHANNELS, bool FUSED>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const Problem p, const Layout layout, const T *__restrict__ value, const C *__restrict__ positions,
                   const C *__restrict__ shares, const typename Wide<T>::type *__restrict__ reference,
                   const uint8_t *__restrict__ mask, T *__restrict__ out) {
    typedef typename Wide<T>::type A;
    MSDA_SHARED(memory);
    const int width = layout.width(), group = threadIdx.x / width, thread = threadIdx.x % width;
    const int lane = thread % layout.lanes, part = thread / layout.lanes;
    Sample<A> *tile = reinterpret_cast<Sample<A> *>(memory) + group * kTile;
    const int samples = p.levels * p.points, pairs = int(p.batch) * p.heads;
    const int64_t wanted = int64_t(blockIdx.x) * layout.groups + group, row_step = int64_t(p.heads) * p.depth;
    const bool mine = wanted < p.queries;  // the others keep the warp company
    const int64_t query = mine ? wanted : p.queries - 1;

    for (int pair = blockIdx.y; pair < pairs; pair += gridDim.y) {
        const Query at = query_at(p, pair / p.heads, pair % p.heads, query);
        const C *where = positions + at.position, *how = shares + at.share;
        const A *around = FUSED ? reference + at.reference : nullptr;
        const uint8_t *hidden = FUSED && mask ? mask + at.mask : nullptr;
        Softmax<A> softmax = {0, 1};
        if (FUSED) softmax = softmax_of<A>(how, samples, thread, width);
        for (int64_t chunk = 0; chunk < p.depth; chunk += layout.lanes * CHANNELS) {
            const int64_t channel = chunk + lane * CHANNELS;
            const T *column = value + at.value + channel;
            A sum[CHANNELS] = {};
            for (int first = 0; first < samples; first += kTile) {
                const int count = samples - first < kTile ? samples - first : kTile;
                __syncwarp();
                for (int s = thread; s < count; s += width)
                    tile[s] = sample_at<FUSED>(p, first + s, where, how, around, hidden, softmax);
                __syncwarp();
                if (channel >= p.depth) continue;
#pragma unroll 2
                for (int s = part; s < count; s += layout.split) {
                    const Sample<A> sample = tile[s];
                    A share[4];
                    Pack<T, CHANNELS> corner[4];
                    gather<T, CHANNELS>(sample, column, row_step, corner);
                    corner_shares(sample, share);
#pragma unroll
                    for (int k = 0; k < 4; k++)
#pragma unroll
                        for (int c = 0; c < CHANNELS; c++)
                            sum[c] += sample.weight * share[k] * A(widened(corner[k].at[c]));
                }
            }
            for (int far = width / 2; far >= layout.lanes; far /= 2)
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) sum[c] += __shfl_xor_sync(kAll, sum[c], far);
            if (mine && part == 0 && channel < p.depth) {
                Pack<T, CHANNELS> made;
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) narrow(sum[c], &made.at[c]);
                *reinterpret_cast<Pack<T, CHANNELS> *>(out + at.out + channel) = made;
            }
        }
    }
}

// Adds a run of numbers to memory that others add to as well: four at a time where the device can.
template <typename A, int CHANNELS> __device__ __forceinline__ void add(A *to, const A by[CHANNELS]) {
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) atomicAdd(to + c, by[c]);
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
template <> __device__ __forceinline__ void add<float, 4>(float *to, const float by[4]) {
    atomicAdd(reinterpret_cast<float4 *>(to), make_float4(by[0], by[1], by[2], by[3]));
}
template <> __device__ __forceinline__ void add<float, 8>(float *to, const float by[8]) {
    add<float, 4>(to, by);
    add<float, 4>(to + 4, by + 4);
}
#endif

template <typename T, typename C, int CHANNELS, bool FUSED>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const Problem p, const Layout layout, const T *__restrict__ grad, const T *__restrict__ value,
                    const C *__restrict__ positions, const C *__restrict__ shares,
                    const typename Wide<T>::type *__restrict__ reference, const uint8_t *__restrict__ mask,
                    typename Wide<T>::type *__restrict__ grad_value, typename Wide<T>::type *__restrict__ grad_reference,
                    typename Wide<T>::type *__restrict__ grad_positions, typename Wide<T>::type *grad_shares) {
    typedef typename Wide<T>::type A;
    typedef Pack<T, CHANNELS> Part;
    MSDA_SHARED(memory);
    const int lanes = layout.lanes, group = threadIdx.x / lanes, lane = threadIdx.x % lanes;
    Sample<A> *tile = reinterpret_cast<Sample<A> *>(memory) + group * kTile;
    const int samples = p.levels * p.points, pairs = int(p.batch) * p.heads;
    const int64_t wanted = int64_t(blockIdx.x) * layout.groups + group, row_step = int64_t(p.heads) * p.depth;
    const bool mine = wanted < p.queries;
    const int64_t query = mine ? wanted : p.queries - 1;

    for (int pair = blockIdx.y; pair < pairs; pair += gridDim.y) {
        const int picture = pair / p.heads, head = pair % p.heads;
        const Query at = query_at(p, picture, head, query);
        const C *where = positions + at.position, *how = shares + at.share;
        const A *around = FUSED ? reference + at.reference : nullptr;
        const uint8_t *hidden = FUSED && mask ? mask + at.mask : nullptr;
        const int64_t sample0 = ((picture * p.queries + query) * p.heads + head) * samples;
        Softmax<A> softmax = {0, 1};
        if (FUSED) softmax = softmax_of<A>(how, samples, lane, lanes);
        Part kept = {};
        if (lane * CHANNELS < p.depth) kept = *reinterpret_cast<const Part *>(grad + at.out + lane * CHANNELS);
        A mean = 0;                            // of the weights' gradients, under the weights: what softmax takes off
        A moved[4] = {0, 0, 0, 0};             // the reference's gradient on this level: x, y, width, height
        for (int first = 0; first < samples; first += kTile) {
            const int count = samples - first < kTile ? samples - first : kTile;
            __syncwarp();
            for (int s = lane; s < count; s += lanes)
                tile[s] = sample_at<FUSED>(p, first + s, where, how, around, hidden, softmax);
            __syncwarp();
            for (int s = 0; s < count; s++) {
                const Sample<A> sample = tile[s];
                A share[4], dot[4] = {0, 0, 0, 0};  // output gradient times corner, over channels
                corner_shares(sample, share);
                for (int64_t channel = lane * CHANNELS; channel < p.depth; channel += lanes * CHANNELS) {
                    const Part rise = channel < lanes * CHANNELS
                                          ? kept
                                          : *reinterpret_cast<const Part *>(grad + at.out + channel);
                    Part corner[4];
                    gather<T, CHANNELS>(sample, value + at.value + channel, row_step, corner);
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        A by[CHANNELS];
#pragma unroll
                        for (int c = 0; c < CHANNELS; c++) {
                            const A up = widened(rise.at[c]);
                            dot[k] += up * A(widened(corner[k].at[c]));
                            by[c] = sample.weight * share[k] * up;
                        }
                        if (mine && sample.row[k] >= 0)
                            add<A, CHANNELS>(grad_value + at.value + sample.row[k] * row_step + channel, by);
                    }
                }
                A of_weight = 0;
#pragma unroll
                for (int k = 0; k < 4; k++) of_weight += share[k] * dot[k];
                A of_x = sample.weight * ((1 - sample.y) * (dot[1] - dot[0]) + sample.y * (dot[3] - dot[2]));
                A of_y = sample.weight * ((1 - sample.x) * (dot[2] - dot[0]) + sample.x * (dot[3] - dot[1]));
                for (int far = lanes / 2; far; far /= 2) {
                    of_weight += __shfl_xor_sync(kAll, of_weight, far);
                    of_x += __shfl_xor_sync(kAll, of_x, far);
                    of_y += __shfl_xor_sync(kAll, of_y, far);
                }
                // Every lane of the group now has all three; of_x and of_y are per pixel of the level.
                const int number = first + s, level = number / p.points;
                A map_width = 0, map_height = 0;
#pragma unroll
                for (int l = 0; l < MSDA_LEVELS; l++)
                    if (l == level) map_width = A(p.width[l]), map_height = A(p.height[l]);
                A step_x = map_width, step_y = map_height;
                if (FUSED) {
                    const A *box = around + level * p.reference_level;
                    step_x = step_y = 1;
                    moved[0] += of_x * map_width, moved[1] += of_y * map_height;
                    if (p.reference_numbers == 4) {
                        const A half = A(0.5) / p.points;
                        step_x = map_width * box[2] * half, step_y = map_height * box[3] * half;
                        moved[2] += of_x * map_width * half * A(widened(where[2 * number]));
                        moved[3] += of_y * map_height * half * A(widened(where[2 * number + 1]));
                    }
                    mean += sample.weight * of_weight;
                    if ((number + 1) % p.points == 0) {
                        if (mine && lane < p.reference_numbers) {
                            const A by = lane == 0 ? moved[0] : lane == 1 ? moved[1] : lane == 2 ? moved[2] : moved[3];
                            atomicAdd(grad_reference + at.reference + level * p.reference_level + lane, by);
                        }
                        moved[0] = moved[1] = moved[2] = moved[3] = 0;
                    }
                }
                if (mine && lane == s % lanes) {
                    grad_positions[2 * (sample0 + number)] = of_x * step_x;
                    grad_positions[2 * (sample0 + number) + 1] = of_y * step_y;
                    grad_shares[sample0 + number] = of_weight;
                }
            }
        }
        if (!FUSED) continue;
        // Through the softmax: the same lanes read back what the warp has just written.
        __syncwarp();
        for (int s = lane; mine && s < samples; s += lanes) {
            const A weight = grown(A(widened(how[s])) - softmax.greatest) / softmax.sum;
            grad_shares[sample0 + s] = weight * (grad_shares[sample0 + s] - mean);
        }
    }
}

bool fits(const Problem &p) {
    const int64_t most = 2147483647;
    return p.levels >= 1 && p.levels <= MSDA_LEVELS && p.points >= 1 && p.depth >= 1 && p.places <= most &&
           p.batch * p.heads <= most && p.queries / 4 < most && int64_t(p.levels) * p.points <= most / 4;
}

bool aligned(const void *pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// As many lanes as the channels fill; then, where that leaves the device idle, more of them for a query's samples.
Layout layout_for(const Problem &p, int channels, bool splits) {
    Layout layout = {kLeastLanes, 1, 0};
    while (layout.lanes < 32 && layout.lanes * channels < p.depth) layout.lanes *= 2;
    int device = 0, processors = 1;
    if (splits && cudaGetDevice(&device) == cudaSuccess)
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    const double queries = double(p.batch) * p.heads * double(p.queries);
    const int samples = p.levels * p.points;
    while (splits && layout.lanes * layout.split < 32 && 4 * layout.split <= samples &&
           queries * layout.lanes * layout.split < 1024.0 * processors)
        layout.split *= 2;
    layout.groups = kThreads / (layout.lanes * layout.split);
    return layout;
}

dim3 grid_for(const Problem &p, const Layout &layout) {
    const int64_t pairs = p.batch * p.heads;
    return dim3(unsigned((p.queries + layout.groups - 1) / layout.groups), unsigned(pairs < 65535 ? pairs : 65535));
}

template <typename T, typename C, int CHANNELS, bool FUSED>
int forward_with(const Problem &p, const void *value, const void *positions, const void *shares, const void *reference,
                 const uint8_t *mask, void *out, cudaStream_t stream) {
    typedef typename Wide<T>::type A;
    const Layout layout = layout_for(p, CHANNELS, true);
    const size_t bytes = layout.groups * kTile * sizeof(Sample<A>);
    MSDA_LAUNCH((forward_kernel<T, C, CHANNELS, FUSED>), grid_for(p, layout), kThreads, bytes, stream, p, layout,
                static_cast<const T *>(value), static_cast<const C *>(positions), static_cast<const C *>(shares),
                static_cast<const A *>(reference), mask, static_cast<T *>(out));
    return cudaGetLastError();
}

template <typename T, typename C, int CHANNELS, bool FUSED>
int backward_with(const Problem &p, const void *grad, const void *value, const void *positions, const void *shares,
                  const void *reference, const uint8_t *mask, void *grad_value, void *grad_reference,
                  void *grad_positions, void *grad_shares, cudaStream_t stream) {
    typedef typename Wide<T>::type A;
    const Layout layout = layout_for(p, CHANNELS, false);
    const size_t bytes = layout.groups * kTile * sizeof(Sample<A>);
    MSDA_LAUNCH((backward_kernel<T, C, CHANNELS, FUSED>), grid_for(p, layout), kThreads, bytes, stream, p, layout,
                static_cast<const T *>(grad), static_cast<const T *>(value), static_cast<const C *>(positions),
                static_cast<const C *>(shares), static_cast<const A *>(reference), mask, static_cast<A *>(grad_value),
                static_cast<A *>(grad_reference), static_cast<A *>(grad_positions), static_cast<A *>(grad_shares));
    return cudaGetLastError();
}

// The kernel for one pair of types: 16 bytes a lane where sizes and addresses allow, else channel by channel.
#define MSDA_FORMS(RUN, T, C, ALIGNED, ...)                                                      \
    do {                                                                                         \
        constexpr int channels = 16 / sizeof(T);                                                 \
        const bool wide = p.depth % channels == 0 && (ALIGNED);                                  \
        if (p.reference_numbers)                                                                 \
            return wide ? RUN<T, C, channels, true>(__VA_ARGS__) : RUN<T, C, 1, true>(__VA_ARGS__); \
        return wide ? RUN<T, C, channels, false>(__VA_ARGS__) : RUN<T, C, 1, false>(__VA_ARGS__);   \
    } while (0)

#define MSDA_TYPES(RUN, ALIGNED, ...)                                                                               \
    do {                                                                                                            \
        if (p.type == MSDA_FLOAT32 && p.side == MSDA_FLOAT32) MSDA_FORMS(RUN, float, float, ALIGNED, __VA_ARGS__);  \
        if (p.type == MSDA_FLOAT64 && p.side == MSDA_FLOAT64) MSDA_FORMS(RUN, double, double, ALIGNED, __VA_ARGS__); \
        if (p.type == MSDA_FLOAT16 && p.side == MSDA_FLOAT16) MSDA_FORMS(RUN, __half, __half, ALIGNED, __VA_ARGS__); \
        if (p.type == MSDA_FLOAT16 && p.side == MSDA_FLOAT32) MSDA_FORMS(RUN, __half, float, ALIGNED, __VA_ARGS__); \
        if (p.type == MSDA_BFLOAT16 && p.side == MSDA_BFLOAT16)                                                     \
            MSDA_FORMS(RUN, __nv_bfloat16, __nv_bfloat16, ALIGNED, __VA_ARGS__);                                    \
        if (p.type == MSDA_BFLOAT16 && p.side == MSDA_FLOAT32)                                                      \
            MSDA_FORMS(RUN, __nv_bfloat16, float, ALIGNED, __VA_ARGS__);                                            \
        return -1;                                                                                                  \
    } while (0)

}  // namespace

extern "C" {

int msda_cuda_abi(void) { return MSDA_CUDA_ABI; }

const char *msda_cuda_error(int code) {
    return code < 0 ? "the sizes or types are beyond what the kernels take"
                    : cudaGetErrorString(static_cast<cudaError_t>(code));
}

int msda_cuda_forward(const msda_cuda_problem *problem, const void *value, const void *positions, const void *shares,
                      const void *reference, const uint8_t *mask, void *out, void *stream) {
    const Problem &p = *problem;
    if (!fits(p)) return -1;
    if (!p.batch || !p.queries || !p.heads) return 0;
    MSDA_TYPES(forward_with, aligned(value) && aligned(out), p, value, positions, shares, reference, mask, out,
               static_cast<cudaStream_t>(stream));
}

int msda_cuda_backward(const msda_cuda_problem *problem, const void *grad, const void *value, const void *positions,
                       const void *shares, const void *reference, const uint8_t *mask, void *grad_value,
                       void *grad_reference, void *grad_positions, void *grad_shares, void *stream) {
    const Problem &p = *problem;
    if (!fits(p)) return -1;
    if (!p.batch || !p.queries || !p.heads) return 0;
    MSDA_TYPES(backward_with, aligned(grad) && aligned(value) && aligned(grad_value), p, grad, value, positions, shares,
               reference, mask, grad_value, grad_reference, grad_positions, grad_shares,
               static_cast<cudaStream_t>(stream));
}

}  // extern "C"
