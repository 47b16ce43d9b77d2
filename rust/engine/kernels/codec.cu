// What a codec does besides products: what convolutions remember, and the search for codebook
// entries.
#include "device.cuh"

enum Padding { ZERO = 0, REPLICATE = 1 };

static __device__ inline float activated(float x, int is_elu) {
    return is_elu && x <= 0 ? expm1f(x) : x;
}

// Puts what each lane remembers before its activated input, and remembers the end of both. x: rows
// × time × inputs. extended: rows × (past + time) × inputs. memories: lanes × past × inputs.
// Blocks: numbers, rows.
KERNEL(extend, 256,
       (const float *x, float *extended, float *memories, const Row *rows, int time, int inputs,
        int past, int is_elu, int padding)) {
    const float *from = x + (u64)blockIdx.y * time * inputs;
    float *to = extended + (u64)blockIdx.y * (past + time) * inputs, *present = to + past * inputs;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < time * inputs;
         i += gridDim.x * blockDim.x)
        present[i] = activated(from[i], is_elu);
    if (blockIdx.x > 0) return;
    const Row row = rows[blockIdx.y];
    float *memory = memories + (u64)row.lane * past * inputs;
    // Each thread has channels of its own, so that it can overwrite what it has read.
    for (int channel = threadIdx.x; channel < inputs; channel += blockDim.x) {
        for (int t = 0; t < past; t++) {
            float number = memory[t * inputs + channel];
            if (row.is_fresh) number = padding == ZERO ? 0 : activated(from[channel], is_elu);
            to[t * inputs + channel] = number;
        }
        for (int t = 0; t < past; t++) {
            const int at = t + time;
            memory[t * inputs + channel] =
                at < past ? to[at * inputs + channel]
                          : activated(from[(at - past) * inputs + channel], is_elu);
        }
    }
}

// The nearest of the entries that a block has looked at.
struct Best {
    float distance;
    u32 entry;
};

enum { SEARCH_THREADS = 256, SEARCH_ROWS = 4, SEARCH_ENTRIES = 64, MOST_CODE_DIM = 256 };

// The first of the nearest of all blocks of a row.
static __device__ inline u32 nearest_of(const Best *bests, int blocks) {
    Best best = bests[0];
    for (int b = 1; b < blocks; b++)
        if (bests[b].distance < best.distance) best = bests[b];
    return best.entry;
}

// One level of residual quantization: takes away what the level before has chosen, and looks for
// the nearest entry, by ‖e‖²/2 − x·e. residual, left: rows × dim, the first before, the second
// after the subtraction. before: the entries of the level before, or null. chosen: rows × stride.
// Blocks: entries, rows by four.
KERNEL(search, SEARCH_THREADS,
       (const float *residual, float *left, const float *before, const Best *bests_before,
        u32 *chosen, const float *entries, const float *half_norms, Best *bests, int rows, int dim,
        int bins, int stride)) {
    __shared__ float vectors[SEARCH_ROWS][MOST_CODE_DIM];
    __shared__ Best found[SEARCH_THREADS / WARP][SEARCH_ROWS];
    const int first_row = blockIdx.y * SEARCH_ROWS, blocks = gridDim.x;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (int r = 0; r < SEARCH_ROWS; r++) {
        const int row = min(first_row + r, rows - 1);
        const u32 taken = before ? nearest_of(bests_before + (u64)row * blocks, blocks) : 0;
        for (int i = threadIdx.x; i < dim; i += blockDim.x) {
            float number = residual[(u64)row * dim + i];
            if (before) number -= before[(u64)taken * dim + i];
            vectors[r][i] = number;
            if (blockIdx.x == 0 && first_row + r < rows) left[(u64)row * dim + i] = number;
        }
        if (before && blockIdx.x == 0 && threadIdx.x == 0 && first_row + r < rows)
            chosen[(u64)row * stride] = taken;
    }
    __syncthreads();
    Best best[SEARCH_ROWS];
    for (int r = 0; r < SEARCH_ROWS; r++) best[r] = Best{INFINITY, 0};
    const int first = blockIdx.x * SEARCH_ENTRIES, last = min(first + SEARCH_ENTRIES, bins);
    for (int entry = first + warp; entry < last; entry += SEARCH_THREADS / WARP) {
        float sums[SEARCH_ROWS] = {};
        for (int i = lane; i < dim; i += WARP) {
            const float number = entries[(u64)entry * dim + i];
            for (int r = 0; r < SEARCH_ROWS; r++) sums[r] += number * vectors[r][i];
        }
        for (int r = 0; r < SEARCH_ROWS; r++) {
            const float distance = half_norms[entry] - warp_sum(sums[r]);
            if (distance < best[r].distance) best[r] = Best{distance, (u32)entry};
        }
    }
    if (lane == 0)
        for (int r = 0; r < SEARCH_ROWS; r++) found[warp][r] = best[r];
    __syncthreads();
    if (threadIdx.x >= SEARCH_ROWS || first_row + (int)threadIdx.x >= rows) return;
    Best nearest = found[0][threadIdx.x];
    for (int w = 1; w < SEARCH_THREADS / WARP; w++) {
        const Best other = found[w][threadIdx.x];
        if (other.distance < nearest.distance ||
            (other.distance == nearest.distance && other.entry < nearest.entry))
            nearest = other;
    }
    bests[(u64)(first_row + threadIdx.x) * blocks + blockIdx.x] = nearest;
}

// What the last level has chosen, and whether all of `numbers` (rows × width) is finite. A block a
// row.
KERNEL(conclude, 128,
       (const Best *bests, int blocks, u32 *chosen, int stride, const float *numbers, int width,
        u32 *is_finite)) {
    __shared__ float scratch[4];
    float faults = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        faults += isfinite(numbers[(u64)blockIdx.x * width + i]) ? 0 : 1;
    faults = block_sum(faults, scratch);
    if (threadIdx.x > 0) return;
    chosen[(u64)blockIdx.x * stride] = nearest_of(bests + (u64)blockIdx.x * blocks, blocks);
    is_finite[blockIdx.x] = faults == 0;
}
