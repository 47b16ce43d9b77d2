// Kernels on the processor: what device.cuh needs where no card is.
//
// Each thread of a block is a fiber. It runs until it waits for its block or its warp, so that the
// order in which threads run between two barriers is ours to choose: kernels whose results depend
// on it have a race.
#pragma once

#include <math.h>

#include "kernels.h"

#define KERNEL(NAME, THREADS, PARAMETERS)                                                 \
    extern "C" void NAME PARAMETERS;                                                      \
    static const emulated::Registration registration_##NAME(#NAME, THREADS,               \
                                                            emulated::Bound<NAME>::bind); \
    extern "C" void NAME PARAMETERS

#define __device__
// A block runs on one thread of the processor, from its beginning to its end.
#define __shared__ static thread_local

#define WARP 32

struct Index {
    unsigned x, y, z;
};

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};

namespace emulated {
extern thread_local Index thread_index, block_index, block_size, grid_size;
void wait_for_block();
void wait_for_warp();
float exchange(float value, int mask);
void mma(float *d, const unsigned *a, const unsigned *b, float (*to_f32)(unsigned short));
float bf16_to_f32(unsigned short bits);
float f16_to_f32(unsigned short bits);
unsigned short f32_to_f16(float value);
}  // namespace emulated

#define threadIdx emulated::thread_index
#define blockIdx emulated::block_index
#define blockDim emulated::block_size
#define gridDim emulated::grid_size

static inline void __syncthreads() { emulated::wait_for_block(); }
static inline void __syncwarp() { emulated::wait_for_warp(); }
static inline float shuffle_xor(float value, int mask) { return emulated::exchange(value, mask); }
static inline float f16_to_f32(unsigned short bits) { return emulated::f16_to_f32(bits); }
static inline unsigned short f32_to_f16(float value) { return emulated::f32_to_f16(value); }

static inline void mma_f16(float *d, const unsigned *a, unsigned b0, unsigned b1) {
    const unsigned b[2] = {b0, b1};
    emulated::mma(d, a, b, emulated::f16_to_f32);
}
static inline void mma_bf16(float *d, const unsigned *a, unsigned b0, unsigned b1) {
    const unsigned b[2] = {b0, b1};
    emulated::mma(d, a, b, emulated::bf16_to_f32);
}
static inline unsigned two_i8_to_f16(unsigned bytes, bool upper) {
    const unsigned pair = upper ? bytes >> 16 : bytes;
    return f32_to_f16((signed char)pair) | (unsigned)f32_to_f16((signed char)(pair >> 8)) << 16;
}

static inline int min(int a, int b) { return a < b ? a : b; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
