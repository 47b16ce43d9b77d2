// Products with weights: y = f(x Wᵀ + b).
//
// Few rows of x are a matter of reading W once, as fast as the card can: `product_rows`. Many rows
// are a matter of arithmetic: `product_mma` on tensor cores, and in f32, which they lack,
// `product_tile`, which is also for the windows of convolutions.
#include "device.cuh"

// What becomes of a sum.
enum Ending { STORE = 0, GELU = 1, ADD = 2 };

static __device__ inline void finish(float *y, float sum, u32 output, const float *bias,
                                     const float *scale, int ending) {
    if (bias) sum += bias[output];
    if (ending == STORE) {
        *y = sum;
    } else if (ending == GELU) {
        *y = gelu(sum);
    } else {
        *y += scale ? scale[output] * sum : sum;
    }
}

// Outputs that a warp computes together, so that it has as many reads under way.
enum { WARP_OUTPUTS = 4 };

// x: ROWS × inputs. W: outputs × inputs. y: ROWS × outputs. A warp for every four outputs.
template <class W, int ROWS>
static __device__ inline void product_rows(const float *x, const void *weights, const float *bias,
                                           const float *scale, float *y, int rows, int outputs,
                                           int inputs, int ending) {
    const W w = W::of(weights, outputs, inputs);
    const u32 warp = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    const int lane = threadIdx.x % WARP;
    const int first = warp * WARP_OUTPUTS;
    if (first >= outputs) return;
    float sums[WARP_OUTPUTS][ROWS] = {};
    for (int k = lane * W::AT_ONCE; k < inputs; k += WARP * W::AT_ONCE) {
        float numbers[WARP_OUTPUTS][W::AT_ONCE];
        for (int o = 0; o < WARP_OUTPUTS; o++) {
            // What is beyond the last output is computed and not stored.
            w.load(min(first + o, outputs - 1), inputs, k, numbers[o]);
        }
        for (int row = 0; row < ROWS; row++) {
            const float *from = x + (u64)min(row, rows - 1) * inputs + k;
            for (int i = 0; i < W::AT_ONCE; i += 4) {
                Four four = load_four(from + i);
                for (int o = 0; o < WARP_OUTPUTS; o++)
                    for (int j = 0; j < 4; j++) sums[o][row] += numbers[o][i + j] * four.at[j];
            }
        }
    }
    for (int o = 0; o < WARP_OUTPUTS; o++) {
        for (int row = 0; row < ROWS; row++) {
            float sum = warp_sum(sums[o][row]);
            if (lane == 0 && first + o < outputs && row < rows)
                finish(y + (u64)row * outputs + first + o, sum, first + o, bias, scale, ending);
        }
    }
}

// Rows of x that overlap or lie apart: row r begins at r / group_rows · group_stride + r %
// group_rows · row_stride, and its numbers are in taps of `tap` numbers that are `tap_stride`
// apart.
struct Windows {
    int rows, group_rows, row_stride, tap, tap_stride;
    u64 group_stride;

    __device__ u64 start(int row) const {
        return row / group_rows * group_stride + (u64)(row % group_rows) * row_stride;
    }

    __device__ u32 offset(int k) const {
        return tap == tap_stride ? k : k / tap * tap_stride + k % tap;
    }
};

// A block computes ROWS × OUTPUTS numbers of y, each thread 4 × 4. PARTS groups of threads share
// the inputs among themselves and add up in their order.
template <class W, int ROWS, int OUTPUTS, int PARTS>
static __device__ inline void product_tile(const float *x, const void *weights, const float *bias,
                                           const float *scale, float *y, Windows windows,
                                           int outputs, int inputs, int padded, int ending) {
    enum { DEPTH = 16, THREADS = ROWS / 4 * (OUTPUTS / 4), LOADS = ROWS * DEPTH / THREADS };
    __shared__ float xs[PARTS][DEPTH][ROWS + 4];
    __shared__ float ws[PARTS][DEPTH][OUTPUTS + 4];
    const W w = W::of(weights, outputs, padded);
    const int part = threadIdx.x / THREADS, thread = threadIdx.x % THREADS;
    const int row = thread / (OUTPUTS / 4) * 4, output = thread % (OUTPUTS / 4) * 4;
    const int first_row = blockIdx.y * ROWS, first_output = blockIdx.x * OUTPUTS;
    // A thread loads the same input of several rows, whose beginnings it finds once.
    const int x_row = thread / DEPTH, x_input = thread % DEPTH;
    const float *from[LOADS];
    for (int i = 0; i < LOADS; i++) {
        const int r = first_row + x_row + i * (THREADS / DEPTH);
        from[i] = r < windows.rows ? x + windows.start(r) : nullptr;
    }
    float sums[4][4] = {};
    for (int start = 0; start < inputs; start += DEPTH * PARTS) {
        const int k0 = start + part * DEPTH;
        const bool is_there = k0 + x_input < inputs;
        const u32 offset = windows.offset(k0 + x_input);
        __syncthreads();
        for (int i = 0; i < LOADS; i++)
            xs[part][x_input][x_row + i * (THREADS / DEPTH)] =
                is_there && from[i] ? from[i][offset] : 0.0f;
        for (int i = thread; i < OUTPUTS * DEPTH / 4; i += THREADS) {
            const int o = i / (DEPTH / 4), k = i % (DEPTH / 4) * 4;
            Four four = {};
            if (first_output + o < outputs && k0 + k < padded)
                four = w.four(first_output + o, padded, k0 + k);
            for (int j = 0; j < 4; j++) ws[part][k + j][o] = four.at[j];
        }
        __syncthreads();
        for (int k = 0; k < DEPTH; k++) {
            const Four a = load_four(&xs[part][k][row]), b = load_four(&ws[part][k][output]);
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) sums[i][j] += a.at[i] * b.at[j];
        }
    }
    if (PARTS > 1) {
        // Each part's sums where its tiles were: they are large enough for the later parts, one
        // after the other.
        __shared__ float others[PARTS > 1 ? ROWS : 1][PARTS > 1 ? OUTPUTS : 1];
        for (int from = 1; from < PARTS; from++) {
            __syncthreads();
            if (part == from)
                for (int i = 0; i < 4; i++)
                    for (int j = 0; j < 4; j++) others[row + i][output + j] = sums[i][j];
            __syncthreads();
            if (part == 0)
                for (int i = 0; i < 4; i++)
                    for (int j = 0; j < 4; j++) sums[i][j] += others[row + i][output + j];
        }
        if (part != 0) return;
    }
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            const int r = first_row + row + i, o = first_output + output + j;
            if (r < windows.rows && o < outputs)
                finish(y + (u64)r * outputs + o, sums[i][j], o, bias, scale, ending);
        }
    }
}

// Numbers as two of sixteen bits each, the second of which is what the first leaves: together they
// are as exact as 22 bits (f16) or 16 (bf16). halves: all first ones, then all second ones. f16 has
// no numbers beyond 65504: they become infinite, which is noticed in the end.
template <u16 (*FROM_F32)(float), float (*TO_F32)(u16)>
static __device__ inline void split(const float *x, u16 *halves, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const u16 first = FROM_F32(x[i]);
    halves[i] = first;
    halves[count + i] = FROM_F32(x[i] - TO_F32(first));
}

KERNEL(split_f16, 256, (const float *x, u16 *halves, int count)) {
    split<f32_to_f16, f16_to_f32>(x, halves, count);
}

// Formats of weights as tensor cores take them. `load` gives a thread what it has of two tiles of
// 16 × 16 that lie beside each other: of two rows eight numbers from k on. A product's order of
// inputs does not matter while weights and x have the same, so a thread's numbers may be
// neighbours.
struct TilesF16 {
    enum { IS_SCALED = false };
    const u16 *numbers;

    static __device__ TilesF16 of(const void *weights, u64, int) {
        return TilesF16{(const u16 *)weights};
    }

    __device__ void load(const u64 *rows, int inputs, int k, u32 tiles[2][4]) const {
        for (int r = 0; r < 2; r++) {
            const uint4 packed = *(const uint4 *)(numbers + rows[r] * inputs + k);
            tiles[0][r] = packed.x;
            tiles[0][2 + r] = packed.y;
            tiles[1][r] = packed.z;
            tiles[1][2 + r] = packed.w;
        }
    }

    __device__ float scale(u64, int, int) const { return 1; }
    static __device__ void mma(float *d, const u32 *a, u32 b0, u32 b1) { mma_f16(d, a, b0, b1); }
};

struct TilesQ8 {
    enum { IS_SCALED = true };
    Q8 q8;

    static __device__ TilesQ8 of(const void *weights, u64 outputs, int inputs) {
        return TilesQ8{Q8::of(weights, outputs, inputs)};
    }

    __device__ void load(const u64 *rows, int inputs, int k, u32 tiles[2][4]) const {
        for (int r = 0; r < 2; r++) {
            const uint2 packed = *(const uint2 *)(q8.numbers + rows[r] * inputs + k);
            tiles[0][r] = two_i8_to_f16(packed.x, false);
            tiles[0][2 + r] = two_i8_to_f16(packed.x, true);
            tiles[1][r] = two_i8_to_f16(packed.y, false);
            tiles[1][2 + r] = two_i8_to_f16(packed.y, true);
        }
    }

    __device__ float scale(u64 row, int inputs, int k) const { return q8.scale(row, inputs, k); }
    static __device__ void mma(float *d, const u32 *a, u32 b0, u32 b1) { mma_f16(d, a, b0, b1); }
};

// Outputs of a warp, rows of a tile, inputs that a warp takes at once; and warps of a block, of
// which some have other outputs and some other inputs.
enum { MMA_OUTPUTS = 16, MMA_ROWS = 8, MMA_DEPTH = 32, OUTPUT_WARPS = 2, DEPTH_WARPS = 4 };

// y = f(x Wᵀ + b) on tensor cores. halves: see `split`. A block has OUTPUT_WARPS · 16 outputs and
// TILES · 8 rows; its warps add up what they make of their inputs in their order.
template <class W, int TILES>
static __device__ inline void product_mma(const u16 *halves, const void *weights, const float *bias,
                                          const float *scale, float *y, int rows, int outputs,
                                          int inputs, int ending) {
    __shared__ float others[DEPTH_WARPS - 1][OUTPUT_WARPS][TILES][4][WARP];
    const W w = W::of(weights, outputs, inputs);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int group = warp % OUTPUT_WARPS, part = warp / OUTPUT_WARPS;
    // As the fragments of mma are: a thread has rows `quad` and `quad + 8` of W, and row `quad` of
    // x.
    const int quad = lane / 4, member = lane % 4;
    const int first_output = (blockIdx.x * OUTPUT_WARPS + group) * MMA_OUTPUTS;
    const int first_row = blockIdx.y * TILES * MMA_ROWS;
    // What is beyond the last output or row is computed and not stored.
    const u64 w_rows[2] = {(u64)min(first_output + quad, outputs - 1),
                           (u64)min(first_output + quad + 8, outputs - 1)};
    const u64 low = (u64)rows * inputs;
    float sums[TILES][4] = {};
    for (int start = part * MMA_DEPTH; start < inputs; start += DEPTH_WARPS * MMA_DEPTH) {
        const int k = start + member * 8;
        u32 a[2][4];
        w.load(w_rows, inputs, k, a);
        float scales[2];
        for (int r = 0; r < 2; r++) scales[r] = w.scale(w_rows[r], inputs, k);
        for (int tile = 0; tile < TILES; tile++) {
            const int row = min(first_row + tile * MMA_ROWS + quad, rows - 1);
            const u16 *from = halves + (u64)row * inputs + k;
            const uint4 high = *(const uint4 *)from, rest = *(const uint4 *)(from + low);
            float of_block[4] = {};
            float *d = W::IS_SCALED ? of_block : sums[tile];
            W::mma(d, a[0], rest.x, rest.y);
            W::mma(d, a[1], rest.z, rest.w);
            W::mma(d, a[0], high.x, high.y);
            W::mma(d, a[1], high.z, high.w);
            if (W::IS_SCALED)
                for (int i = 0; i < 4; i++) sums[tile][i] += scales[i / 2] * of_block[i];
        }
    }
    if (part > 0)
        for (int tile = 0; tile < TILES; tile++)
            for (int i = 0; i < 4; i++) others[part - 1][group][tile][i][lane] = sums[tile][i];
    __syncthreads();
    if (part > 0) return;
    for (int tile = 0; tile < TILES; tile++) {
        for (int i = 0; i < 4; i++) {
            float sum = sums[tile][i];
            for (int p = 0; p < DEPTH_WARPS - 1; p++) sum += others[p][group][tile][i][lane];
            const int output = first_output + quad + i / 2 * 8;
            const int row = first_row + tile * MMA_ROWS + member * 2 + i % 2;
            if (output < outputs && row < rows)
                finish(y + (u64)row * outputs + output, sum, output, bias, scale, ending);
        }
    }
}

#define PRODUCT_ROWS(FORMAT, NAME, ROWS)                                                          \
    KERNEL(product_rows_##NAME##_##ROWS, 128,                                                     \
           (const float *x, const void *weights, const float *bias, const float *scale, float *y, \
            int rows, int outputs, int inputs, int ending)) {                                     \
        product_rows<FORMAT, ROWS>(x, weights, bias, scale, y, rows, outputs, inputs, ending);    \
    }

#define PRODUCTS_OF_ROWS(FORMAT, NAME) \
    PRODUCT_ROWS(FORMAT, NAME, 1)      \
    PRODUCT_ROWS(FORMAT, NAME, 2)      \
    PRODUCT_ROWS(FORMAT, NAME, 4)      \
    PRODUCT_ROWS(FORMAT, NAME, 8)

// In f32 to the last bit.
#define EXACT_PRODUCTS(FORMAT, NAME)                                                              \
    PRODUCTS_OF_ROWS(FORMAT, NAME)                                                                \
    KERNEL(product_tile_##NAME, 256,                                                              \
           (const float *x, const void *weights, const float *bias, const float *scale, float *y, \
            Windows windows, int outputs, int inputs, int padded, int ending)) {                  \
        product_tile<FORMAT, 32, 32, 4>(x, weights, bias, scale, y, windows, outputs, inputs,     \
                                        padded, ending);                                          \
    }

#define PRODUCT_MMA(TILES_OF, NAME, TILES, ROWS)                                             \
    KERNEL(product_mma_##NAME##_##ROWS, 256,                                                 \
           (const u16 *halves, const void *weights, const float *bias, const float *scale,   \
            float *y, int rows, int outputs, int inputs, int ending)) {                      \
        product_mma<TILES_OF, TILES>(halves, weights, bias, scale, y, rows, outputs, inputs, \
                                     ending);                                                \
    }

#define PRODUCTS(FORMAT, TILES_OF, NAME) \
    PRODUCTS_OF_ROWS(FORMAT, NAME)       \
    PRODUCT_MMA(TILES_OF, NAME, 2, 16)   \
    PRODUCT_MMA(TILES_OF, NAME, 4, 32)   \
    PRODUCT_MMA(TILES_OF, NAME, 8, 64)

EXACT_PRODUCTS(F32, f32)
EXACT_PRODUCTS(Upper, upper)
PRODUCTS(F16, TilesF16, f16)
PRODUCTS(Q8, TilesQ8, q8)

#if HAS_BF16
struct TilesBf16 : TilesF16 {
    static __device__ TilesBf16 of(const void *weights, u64, int) {
        TilesBf16 tiles;
        tiles.numbers = (const u16 *)weights;
        return tiles;
    }

    static __device__ void mma(float *d, const u32 *a, u32 b0, u32 b1) { mma_bf16(d, a, b0, b1); }
};

KERNEL(split_bf16, 256, (const float *x, u16 *halves, int count)) {
    split<f32_to_bf16, upper_to_f32>(x, halves, count);
}

PRODUCTS(Bf16, TilesBf16, bf16)
#endif

KERNEL(convolve, 256,
       (const float *x, const void *weights, const float *bias, const float *scale, float *y,
        Windows windows, int outputs, int inputs, int padded, int ending)) {
    product_tile<F32, 64, 64, 1>(x, weights, bias, scale, y, windows, outputs, inputs, padded,
                                 ending);
}
