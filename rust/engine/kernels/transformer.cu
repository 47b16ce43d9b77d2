// What transformers do between products: norms, rotary positions, attention over rings, gates,
// embeddings.
#include "device.cuh"

// y = x / sqrt(mean(x²) + epsilon) · scale for each row of `width` numbers. A block a row.
KERNEL(rms_norm, 256, (const float *x, const float *scale, float *y, int width, float epsilon)) {
    __shared__ float scratch[8];
    const float *from = x + (u64)blockIdx.x * width;
    float squares = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) squares += from[i] * from[i];
    const float factor = rsqrtf(block_sum(squares, scratch) / width + epsilon);
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        y[(u64)blockIdx.x * width + i] = from[i] * factor * scale[i];
}

// y = (x − mean(x)) / sqrt(variance(x) + epsilon) · scale + bias for each row. A block a row.
KERNEL(layer_norm, 256,
       (const float *x, const float *scale, const float *bias, float *y, int width,
        float epsilon)) {
    __shared__ float scratch[8];
    const float *from = x + (u64)blockIdx.x * width;
    float sum = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += from[i];
    const float mean = block_sum(sum, scratch) / width;
    float squares = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        squares += (from[i] - mean) * (from[i] - mean);
    const float factor = rsqrtf(block_sum(squares, scratch) / width + epsilon);
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        y[(u64)blockIdx.x * width + i] = (from[i] - mean) * factor * scale[i] + bias[i];
}

// Sizes of attention, and which of a row's two positions counts.
struct Attention {
    int heads, head_dim, context, count, which;
    // From one lane's ring to the next, in bytes.
    u64 lane_bytes;

    __device__ u32 start(const Row &row) const { return row.position[which]; }
    __device__ int held(const Row &row) const { return min((int)start(row) + count, context); }
};

// A lane's keys or values in one layer: heads × context × head_dim; of eight bits, then a scale for
// each head and slot.
template <class N>
struct RingOf {
    typedef N Number;
    N *numbers;
    float *scales;

    static __device__ RingOf at(void *rings, const Attention &a, u32 lane, int is_values) {
        const u64 count = (u64)a.heads * a.context * a.head_dim;
        const u64 half =
            sizeof(N) == 1 ? count + (u64)a.heads * a.context * sizeof(float) : count * sizeof(N);
        u8 *from = (u8 *)rings + lane * a.lane_bytes + is_values * half;
        return RingOf{(N *)from, (float *)(from + count)};
    }
};

struct InF32 {
    typedef float Number;
    static __device__ Four four(const RingOf<float> &ring, u64, u64 at) {
        return load_four(ring.numbers + at);
    }
    static __device__ float number(float value, float) { return value; }
};
template <float (*TO_F32)(u16), u16 (*FROM_F32)(float)>
struct InHalf {
    typedef u16 Number;
    static __device__ Four four(const RingOf<u16> &ring, u64, u64 at) {
        return half_four<TO_F32>(ring.numbers + at);
    }
    static __device__ u16 number(float value, float) { return FROM_F32(value); }
};
typedef InHalf<f16_to_f32, f32_to_f16> InF16;
typedef InHalf<upper_to_f32, f32_to_bf16> InBf16;
struct InQ8 {
    typedef i8 Number;
    static __device__ Four four(const RingOf<i8> &ring, u64 slot, u64 at) {
        return i8_four(ring.numbers + at, ring.scales[slot]);
    }
    static __device__ i8 number(float value, float inverse) { return (i8)rintf(value * inverse); }
};

// Puts one head's key or value into its slot. A warp.
template <class F>
static __device__ inline void put(const RingOf<typename F::Number> &ring, u64 slot, int dim,
                                  const float *from) {
    const int lane = threadIdx.x % WARP;
    float inverse = 1;
    if (sizeof(typename F::Number) == 1) {
        float most = 0;
        for (int i = lane; i < dim; i += WARP) most = fmaxf(most, fabsf(from[i]));
        most = warp_max(most);
        inverse = most > 0 ? 127 / most : 0;
        if (lane == 0) ring.scales[slot] = most / 127;
    }
    for (int i = lane; i < dim; i += WARP)
        ring.numbers[slot * dim + i] = F::number(from[i], inverse);
}

// Rotates interleaved pairs of queries and keys to their positions (RoFormer, arXiv:2104.09864),
// and puts keys and values into the lanes' rings. projected: rows × count × 3 × heads × head_dim. A
// warp for each head of each position.
template <class F>
static __device__ inline void remember(float *projected, void *rings, const Row *rows,
                                       const float *frequencies, Attention a, int pieces) {
    const int piece = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, lane = threadIdx.x % WARP;
    if (piece >= pieces) return;
    const int head = piece % a.heads, place = piece / a.heads;
    const Row row = rows[place / a.count];
    const u32 position = a.start(row) + place % a.count;
    const int width = a.heads * a.head_dim;
    float *query = projected + (u64)place * 3 * width + head * a.head_dim;
    float *key = query + width, *value = key + width;
    if (frequencies) {
        for (int i = lane; i < a.head_dim / 2; i += WARP) {
            float sine, cosine;
            sincosf((float)position * frequencies[i], &sine, &cosine);
            for (float *x = query; x <= key; x += width) {
                const float first = x[2 * i], second = x[2 * i + 1];
                x[2 * i] = first * cosine - second * sine;
                x[2 * i + 1] = first * sine + second * cosine;
            }
        }
        __syncwarp();
    }
    const u64 slot = (u64)head * a.context + position % a.context;
    typedef RingOf<typename F::Number> Ring;
    put<F>(Ring::at(rings, a, row.lane, 0), slot, a.head_dim, key);
    put<F>(Ring::at(rings, a, row.lane, 1), slot, a.head_dim, value);
}

// Slots that a block attends to.
enum { SLOTS = 128, ATTEND_THREADS = 128, MOST_DIM = 256 };

// softmax(q kᵀ / √d) v over some slots of a ring: numerators, the largest score and the
// denominator, to be put together by `gather`. parts: places × heads × blocks × (head_dim + 2).
// Blocks: slots, heads, places.
template <class F>
static __device__ inline void attend(const float *projected, void *rings, const Row *rows,
                                     float *parts, Attention a) {
    enum { SHARERS = 8, WARPS = ATTEND_THREADS / WARP };
    __shared__ float query[MOST_DIM];
    __shared__ float weights[SLOTS];
    __shared__ float sums[ATTEND_THREADS][4];
    __shared__ float scratch[WARPS];
    const int head = blockIdx.y, place = blockIdx.z, thread = threadIdx.x, dim = a.head_dim;
    const Row row = rows[place / a.count];
    const int held = a.held(row), first = blockIdx.x * SLOTS, count = min(held - first, (int)SLOTS);
    float *part = parts + (((u64)place * a.heads + head) * gridDim.x + blockIdx.x) * (dim + 2);
    if (count <= 0) {
        if (thread == 0) part[dim] = -INFINITY;
        return;
    }
    typedef RingOf<typename F::Number> Ring;
    const Ring keys = Ring::at(rings, a, row.lane, 0), values = Ring::at(rings, a, row.lane, 1);
    const u64 head_slot = (u64)head * a.context + first;
    const float *from = projected + (u64)place * 3 * a.heads * dim + head * dim;
    const float factor = rsqrtf((float)dim);
    for (int i = thread; i < dim; i += ATTEND_THREADS) query[i] = from[i] * factor;
    __syncthreads();
    // Eight threads share a slot's key, so that they read 128 bytes of it at once.
    const int sharer = thread % SHARERS;
    for (int base = 0; base < count; base += ATTEND_THREADS / SHARERS) {
        const int slot = base + thread / SHARERS;
        float score = 0;
        if (slot < count) {
            for (int i = sharer * 4; i < dim; i += SHARERS * 4) {
                const Four key = F::four(keys, head_slot + slot, (head_slot + slot) * dim + i);
                for (int j = 0; j < 4; j++) score += query[i + j] * key.at[j];
            }
        }
        for (int mask = SHARERS / 2; mask > 0; mask /= 2) score += shuffle_xor(score, mask);
        if (sharer == 0 && slot < count) {
            // Positions of this step that are later than this one.
            for (int later = place % a.count + 1; later < a.count; later++)
                if ((a.start(row) + later) % a.context == first + slot) score = -INFINITY;
            weights[slot] = score;
        }
    }
    __syncthreads();
    float most = -INFINITY;
    for (int slot = 0; slot < count; slot++) most = fmaxf(most, weights[slot]);
    __syncthreads();
    float weight = 0;
    if (thread < count) {
        weight = most == -INFINITY ? 0 : expf(weights[thread] - most);
        weights[thread] = weight;
    }
    const float sum = block_sum(weight, scratch);
    // dim / 4 threads share a slot's value.
    const int sharing = dim / 4, groups = ATTEND_THREADS / sharing, group = thread / sharing;
    Four mixed = {};
    if (group < groups) {
        const int i = thread % sharing * 4;
        for (int slot = group; slot < count; slot += groups) {
            const Four value = F::four(values, head_slot + slot, (head_slot + slot) * dim + i);
            for (int j = 0; j < 4; j++) mixed.at[j] += weights[slot] * value.at[j];
        }
    }
    for (int j = 0; j < 4; j++) sums[thread][j] = mixed.at[j];
    __syncthreads();
    for (int i = thread; i < dim; i += ATTEND_THREADS) {
        float total = 0;
        for (int g = 0; g < groups; g++) total += sums[g * sharing + i / 4][i % 4];
        part[i] = total;
    }
    if (thread == 0) {
        part[dim] = most;
        part[dim + 1] = sum;
    }
}

// Puts the parts of `attend` together. mixed: places × heads × head_dim. Blocks: heads, places.
KERNEL(gather, 128, (const float *parts, float *mixed, int heads, int dim, int blocks)) {
    const u64 head = (u64)blockIdx.y * heads + blockIdx.x;
    const float *from = parts + head * blocks * (dim + 2);
    float most = -INFINITY;
    for (int b = 0; b < blocks; b++) most = fmaxf(most, from[b * (dim + 2) + dim]);
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        float sum = 0, numerator = 0;
        for (int b = 0; b < blocks; b++) {
            const float *part = from + b * (dim + 2);
            if (part[dim] == -INFINITY) continue;
            const float factor = expf(part[dim] - most);
            sum += factor * part[dim + 1];
            numerator += factor * part[i];
        }
        mixed[head * dim + i] = numerator / sum;
    }
}

#define ATTENTION(FORMAT, NAME)                                                                    \
    KERNEL(remember_##NAME, 128,                                                                   \
           (float *projected, void *rings, const Row *rows, const float *frequencies, Attention a, \
            int pieces)) {                                                                         \
        remember<FORMAT>(projected, rings, rows, frequencies, a, pieces);                          \
    }                                                                                              \
    KERNEL(attend_##NAME, 128,                                                                     \
           (const float *projected, void *rings, const Row *rows, float *parts, Attention a)) {    \
        attend<FORMAT>(projected, rings, rows, parts, a);                                          \
    }

ATTENTION(InF32, f32)
ATTENTION(InF16, f16)
#if HAS_BF16
ATTENTION(InBf16, bf16)
#endif
ATTENTION(InQ8, q8)

enum Gating { SILU = 0, GELU_ERF = 1, RELU = 2, SIGMOID = 3 };

// y = g(a) · b, where a row of `wide` is a, then b, `width` numbers each. Blocks: numbers, rows.
KERNEL(gate, 256, (const float *wide, float *y, int width, int gating)) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= width) return;
    const float a = wide[(u64)blockIdx.y * 2 * width + i],
                b = wide[((u64)blockIdx.y * 2 + 1) * width + i];
    const float sigmoid = 1 / (1 + expf(-a));
    const float g = gating == SILU       ? a * sigmoid
                    : gating == GELU_ERF ? gelu(a)
                    : gating == RELU     ? fmaxf(a, 0)
                                         : sigmoid;
    y[(u64)blockIdx.y * width + i] = g * b;
}

// The sum of a row of each table and of `condition`. tokens: rows × streams. firsts: where each
// stream's table begins among all tables' rows. Blocks: numbers (four a thread), rows.
template <class W>
static __device__ inline void embed(const u32 *tokens, const u32 *firsts, const void *tables,
                                    u64 table_rows, const float *condition, float *y, int streams,
                                    int width) {
    const W w = W::of(tables, table_rows, width);
    const int i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i >= width) return;
    Four sum = {};
    for (int stream = 0; stream < streams; stream++) {
        const Four four = w.four(firsts[stream] + tokens[blockIdx.y * streams + stream], width, i);
        for (int j = 0; j < 4; j++) sum.at[j] += four.at[j];
    }
    if (condition)
        for (int j = 0; j < 4; j++) sum.at[j] += condition[i + j];
    store_four(y + (u64)blockIdx.y * width + i, sum);
}

#define EMBED(FORMAT, NAME)                                                              \
    KERNEL(embed_##NAME, 256,                                                            \
           (const u32 *tokens, const u32 *firsts, const void *tables, u64 table_rows,    \
            const float *condition, float *y, int streams, int width)) {                 \
        embed<FORMAT>(tokens, firsts, tables, table_rows, condition, y, streams, width); \
    }

EMBED(F32, f32)
EMBED(Upper, upper)
EMBED(F16, f16)
#if HAS_BF16
EMBED(Bf16, bf16)
#endif
EMBED(Q8, q8)
