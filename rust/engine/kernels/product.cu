// Products with weights: y = f(x Wᵀ + b).
//
// Few rows of x are a matter of reading W once, as fast as the card can: `product_rows`. Many rows,
// and the windows of convolutions, are a matter of arithmetic: `product_tile`.
#include "device.cuh"

// What becomes of a sum.
enum Ending { STORE = 0, GELU = 1, ADD = 2 };

static __device__ inline float gelu(float x) {
    return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}

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

#define PRODUCT_ROWS(FORMAT, NAME, ROWS)                                                          \
    KERNEL(product_rows_##NAME##_##ROWS, 128,                                                     \
           (const float *x, const void *weights, const float *bias, const float *scale, float *y, \
            int rows, int outputs, int inputs, int ending)) {                                     \
        product_rows<FORMAT, ROWS>(x, weights, bias, scale, y, rows, outputs, inputs, ending);    \
    }

#define PRODUCTS(FORMAT, NAME)                                                                    \
    PRODUCT_ROWS(FORMAT, NAME, 1)                                                                 \
    PRODUCT_ROWS(FORMAT, NAME, 2)                                                                 \
    PRODUCT_ROWS(FORMAT, NAME, 4)                                                                 \
    PRODUCT_ROWS(FORMAT, NAME, 8)                                                                 \
    KERNEL(product_tile_##NAME, 256,                                                              \
           (const float *x, const void *weights, const float *bias, const float *scale, float *y, \
            Windows windows, int outputs, int inputs, int padded, int ending)) {                  \
        product_tile<FORMAT, 32, 32, 4>(x, weights, bias, scale, y, windows, outputs, inputs,     \
                                        padded, ending);                                          \
    }

PRODUCTS(F32, f32)
PRODUCTS(Upper, upper)
PRODUCTS(F16, f16)
#if HAS_BF16
PRODUCTS(Bf16, bf16)
#endif
PRODUCTS(Q8, q8)

KERNEL(convolve, 256,
       (const float *x, const void *weights, const float *bias, const float *scale, float *y,
        Windows windows, int outputs, int inputs, int padded, int ending)) {
    product_tile<F32, 64, 64, 1>(x, weights, bias, scale, y, windows, outputs, inputs, padded,
                                 ending);
}
