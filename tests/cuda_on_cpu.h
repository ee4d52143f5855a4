// A stand-in for a CUDA device, enough to run the operator's kernels on a processor: each thread of a block is a fiber,
// a warp's meetings are real meetings, and blocks run one after another. It checks what kernels compute and touch, and
// says nothing about speed or about the device's memory model.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct __half {
    _Float16 bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __half2float(__half x) { return float(x.bits); }
inline __half __float2half(float x) { return {_Float16(x)}; }
inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float made;
    std::memcpy(&made, &bits, 4);
    return made;
}
inline __nv_bfloat16 __float2bfloat16(float x) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) return {0x7fff};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

typedef void *cudaStream_t;
enum cudaError_t { cudaSuccess = 0 };
enum { cudaDevAttrMultiProcessorCount };
inline cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }
// CUDA_ON_CPU_PROCESSORS: how large a device the host code should believe in.
inline cudaError_t cudaDeviceGetAttribute(int *number, int, int) {
    const char *said = std::getenv("CUDA_ON_CPU_PROCESSORS");
    return *number = said ? std::atoi(said) : 1, cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char *cudaGetErrorString(cudaError_t) { return "no error"; }

namespace on_cpu {

constexpr size_t kStack = 1 << 16;
struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStack]};
    bool done = false;
};
struct Warp {
    int arrived = 0;
    unsigned meetings = 0;
    double slots[32];
};

inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline ucontext_t scheduler;
inline int current = 0;
inline bool moved = false;  // whether anything happened since the scheduler last looked
inline unsigned char *shared = nullptr;
inline std::function<void()> body;
inline dim3 block, grid;

inline void pause() { swapcontext(&fibers[current].context, &scheduler); }

inline void meet() {
    Warp &warp = warps[current / 32];
    const unsigned meeting = warp.meetings;
    moved = true;
    if (++warp.arrived == 32) {
        warp.arrived = 0, warp.meetings++;
    } else {
        while (warp.meetings == meeting) pause();
    }
}

inline void entry() {
    body();
    fibers[current].done = moved = true;
    pause();
}

inline void run_block(int threads) {
    warps.assign(threads / 32, Warp());
    fibers = std::vector<Fiber>(threads);
    for (Fiber &fiber : fibers) {
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStack;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, entry, 0);
    }
    // Last thread first: a result that leans on lane 0 having run before the others comes out wrong.
    for (int left = threads; left;) {
        moved = false;
        left = 0;
        for (current = threads - 1; current >= 0; current--) {
            if (fibers[current].done) continue;
            swapcontext(&scheduler, &fibers[current].context);
            left += !fibers[current].done;
        }
        if (left && !moved) std::fprintf(stderr, "a warp waits for threads that never come\n"), std::abort();
    }
}

inline void launch(dim3 size, int threads, size_t bytes, std::function<void()> kernel) {
    body = std::move(kernel);
    grid = size;
    for (block.x = 0; block.x < size.x; block.x++)
        for (block.y = 0; block.y < size.y; block.y++) {
            // Fresh for each block, and exactly as large as asked for: the address sanitizer sees a step beyond.
            std::unique_ptr<unsigned char[]> memory(new unsigned char[bytes]);
            std::memset(memory.get(), 0xff, bytes);
            shared = memory.get();
            run_block(threads);
        }
}

}  // namespace on_cpu

#define MSDA_SHARED(name) unsigned char *name = on_cpu::shared
#define MSDA_BARE(...) __VA_ARGS__
#define MSDA_LAUNCH(kernel, size, threads, bytes, stream, ...) \
    ((void)stream, on_cpu::launch(size, threads, bytes, [=] { MSDA_BARE kernel(__VA_ARGS__); }))
#define threadIdx (dim3(on_cpu::current))
#define blockIdx (on_cpu::block)
#define gridDim (on_cpu::grid)

inline void __syncwarp() { on_cpu::meet(); }

template <typename A> A __shfl_xor_sync(unsigned, A mine, int far) {
    const int lane = on_cpu::current % 32;
    on_cpu::Warp &warp = on_cpu::warps[on_cpu::current / 32];
    warp.slots[lane] = double(mine);
    on_cpu::meet();
    const A theirs = A(warp.slots[lane ^ far]);
    on_cpu::meet();
    return theirs;
}

template <typename A> void atomicAdd(A *to, A by) { *to += by; }
