// What all kernels are written in.
//
// NVRTC compiles them for cards. rust/emulator compiles the same files with a C++ compiler and runs
// them on the processor, so that tests need no card.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef __CUDACC_RTC__

// A kernel, the most threads of its blocks, and its parameters in parentheses.
#define KERNEL(NAME, THREADS, PARAMETERS) \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME PARAMETERS

#define WARP 32
#define ALL_LANES 0xffffffffu
#define INFINITY __int_as_float(0x7f800000)

// bf16 is for cards that have it, whatever these kernels could do.
#define HAS_BF16 (__CUDA_ARCH__ >= 800)

static __device__ inline float f16_to_f32(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

static __device__ inline u16 f32_to_f16(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// d += a b on tensor cores, for a warp: a is 16 × 16, b is 16 × 8, both of sixteen-bit numbers. Of
// both each thread has the pairs that PTX's manual gives it for mma.m16n8k16.
static __device__ inline void mma_f16(float *d, const u32 *a, u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    // Turing's are half as deep.
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%8}, "
        "{%0, %1, %2, %3};\n\t"
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%6, %7}, {%9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

#if HAS_BF16
static __device__ inline void mma_bf16(float *d, const u32 *a, u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// Two signed bytes of `bytes`, from the lower or the upper half of it, as f16 numbers.
static __device__ inline u32 two_i8_to_f16(u32 bytes, bool upper) {
    // A byte in the mantissa of 1024 adds itself; without its sign it is 128 too large.
    const u32 magic = 0x64646464, above = 0x64806480;
    u32 biased = __byte_perm(bytes ^ 0x80808080, magic, upper ? 0x4342 : 0x4140), pair;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(biased), "r"(above));
    return pair;
}

static __device__ inline float shuffle_xor(float value, int mask) {
    return __shfl_xor_sync(ALL_LANES, value, mask);
}

#else
#define HAS_BF16 1
#include "emulated.h"
#endif

static __device__ inline float bits_to_f32(u32 bits) {
    union {
        u32 bits;
        float value;
    } both;
    both.bits = bits;
    return both.value;
}

static __device__ inline u32 f32_to_bits(float value) {
    union {
        float value;
        u32 bits;
    } both;
    both.value = value;
    return both.bits;
}

// Of f32 numbers the upper halves, which are bf16 numbers.
static __device__ inline float upper_to_f32(u16 bits) { return bits_to_f32((u32)bits << 16); }

// To the nearest, ties to even; what is not a number stays that.
static __device__ inline u16 f32_to_bf16(float value) {
    u32 bits = f32_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)(bits >> 16 | 0x40u);
    return (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static __device__ inline float gelu(float x) {
    return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}

static __device__ inline float warp_sum(float value) {
    for (int mask = WARP / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

static __device__ inline float warp_max(float value) {
    for (int mask = WARP / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
    return value;
}

// The sum over a block, for each of its threads. `scratch`: one number a warp.
static __device__ inline float block_sum(float value, float *scratch) {
    value = warp_sum(value);
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = value;
    __syncthreads();
    float sum = 0;
    for (u32 warp = 0; warp < blockDim.x / WARP; warp++) sum += scratch[warp];
    return sum;
}

// One for each lane of a step.
struct Row {
    // The lane's place in rings and memories.
    u32 lane;
    // Whether it has heard nothing before this step.
    u32 is_fresh;
    // Positions that it had in the language model and in the codec's transformer before this step.
    u32 position[2];
};

struct Four {
    float at[4];
};

static __device__ inline Four load_four(const float *from) {
    float4 numbers = *(const float4 *)from;
    return Four{{numbers.x, numbers.y, numbers.z, numbers.w}};
}

static __device__ inline void store_four(float *to, Four numbers) {
    *(float4 *)to = float4{numbers.at[0], numbers.at[1], numbers.at[2], numbers.at[3]};
}

template <float (*TO_F32)(u16)>
static __device__ inline Four half_four(const u16 *from) {
    const uint2 packed = *(const uint2 *)from;
    return Four{{TO_F32((u16)packed.x), TO_F32((u16)(packed.x >> 16)), TO_F32((u16)packed.y),
                 TO_F32((u16)(packed.y >> 16))}};
}

static __device__ inline Four i8_four(const i8 *from, float scale) {
    const u32 packed = *(const u32 *)from;
    Four four;
    for (int i = 0; i < 4; i++) four.at[i] = scale * (float)(i8)(packed >> 8 * i);
    return four;
}

// Formats of weights. `load` gives `AT_ONCE` numbers of a row from 16 bytes; rows are as long as a
// multiple of `AT_ONCE`.
struct F32 {
    enum { AT_ONCE = 4 };
    const float *numbers;

    static __device__ F32 of(const void *weights, u64, int) { return F32{(const float *)weights}; }

    __device__ void load(u64 row, int inputs, int k, float *out) const {
        Four four = load_four(numbers + row * inputs + k);
        for (int i = 0; i < 4; i++) out[i] = four.at[i];
    }

    __device__ Four four(u64 row, int inputs, int k) const {
        return load_four(numbers + row * inputs + k);
    }
};

template <float (*TO_F32)(u16)>
struct Half {
    enum { AT_ONCE = 8 };
    const u16 *numbers;

    static __device__ Half of(const void *weights, u64, int) { return Half{(const u16 *)weights}; }

    __device__ void load(u64 row, int inputs, int k, float *out) const {
        uint4 packed = *(const uint4 *)(numbers + row * inputs + k);
        u32 words[4] = {packed.x, packed.y, packed.z, packed.w};
        for (int i = 0; i < 4; i++) {
            out[2 * i] = TO_F32((u16)words[i]);
            out[2 * i + 1] = TO_F32((u16)(words[i] >> 16));
        }
    }

    __device__ Four four(u64 row, int inputs, int k) const {
        return half_four<TO_F32>(numbers + row * inputs + k);
    }
};

typedef Half<f16_to_f32> F16;
typedef Half<upper_to_f32> Upper;
typedef Half<upper_to_f32> Bf16;

// Blocks of 32 as in GGUF's Q8_0, but all integers first and then all scales: both can be read
// aligned.
struct Q8 {
    enum { AT_ONCE = 16, BLOCK = 32 };
    const i8 *numbers;
    const u16 *scales;

    static __device__ Q8 of(const void *weights, u64 outputs, int inputs) {
        const i8 *numbers = (const i8 *)weights;
        return Q8{numbers, (const u16 *)(numbers + outputs * inputs)};
    }

    __device__ float scale(u64 row, int inputs, int k) const {
        return f16_to_f32(scales[(row * inputs + k) / BLOCK]);
    }

    __device__ void load(u64 row, int inputs, int k, float *out) const {
        uint4 packed = *(const uint4 *)(numbers + row * inputs + k);
        float scale = this->scale(row, inputs, k);
        u32 words[4] = {packed.x, packed.y, packed.z, packed.w};
        for (int i = 0; i < 16; i++) out[i] = scale * (float)(i8)(words[i / 4] >> 8 * (i % 4));
    }

    __device__ Four four(u64 row, int inputs, int k) const {
        return i8_four(numbers + row * inputs + k, scale(row, inputs, k));
    }
};
