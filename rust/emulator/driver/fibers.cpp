// Blocks of threads, one after the other, as fibers.
#include "fibers.h"

#include <sys/mman.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>

namespace emulated {

thread_local Index thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t STACK_BYTES = 128 << 10;
constexpr unsigned MOST_THREADS = 1024;

enum class State { Ready, AtBlock, AtWarp, Done };

// What a thread shows its warp.
union Shown {
    float value;
    struct {
        unsigned a[4], b[2];
    } fragments;
};

struct Fiber {
    void *stack_pointer;
    State state;
    // In turn: whoever shows something the next time has waited for all who look at this.
    Shown shown[2];
    unsigned turn;
};

thread_local Fiber fibers[MOST_THREADS];
thread_local char *stacks;
thread_local void *scheduler;
thread_local unsigned current;
thread_local const Body *body;

extern "C" void emulated_switch(void **from, void *to);

#if defined(__x86_64__)
// Saves what a called function has to keep, and goes on where `to` was saved.
asm(R"(
.text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulated_switch, .-emulated_switch
)");
#else
#error "fibers are written for x86-64"
#endif

void give_up(State state) {
    Fiber &fiber = fibers[current];
    fiber.state = state;
    emulated_switch(&fiber.stack_pointer, scheduler);
}

void fiber_main() {
    (*body)();
    give_up(State::Done);
    abort();
}

void prepare(unsigned index) {
    char *top = stacks + (index + 1) * STACK_BYTES;
    void **stack = reinterpret_cast<void **>(top) - 8;
    memset(stack, 0, 8 * sizeof(void *));
    // After six registers the address to return to; then the stack is as after a call.
    stack[6] = reinterpret_cast<void *>(fiber_main);
    fibers[index] = Fiber{stack, State::Ready, {}, 0};
}

void go_on(unsigned index) {
    current = index;
    thread_index = Index{index % block_size.x, index / block_size.x % block_size.y,
                         index / block_size.x / block_size.y};
    emulated_switch(&scheduler, fibers[index].stack_pointer);
}

// Makes those of [first, last) ready who wait for each other, when all that are not done do.
bool release(unsigned first, unsigned last, State waiting) {
    bool any = false;
    for (unsigned i = first; i < last; i++) {
        if (fibers[i].state == State::Done) continue;
        if (fibers[i].state != waiting) return false;
        any = true;
    }
    for (unsigned i = first; any && i < last; i++)
        if (fibers[i].state == waiting) fibers[i].state = State::Ready;
    return any;
}

void run_block(const Body &of_thread, bool backwards) {
    const unsigned threads = block_size.x * block_size.y * block_size.z;
    if (!stacks) {
        stacks =
            static_cast<char *>(mmap(nullptr, MOST_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (stacks == MAP_FAILED) abort();
    }
    body = &of_thread;
    for (unsigned i = 0; i < threads; i++) prepare(i);
    for (;;) {
        bool went_on = false;
        for (unsigned i = 0; i < threads; i++) {
            const unsigned index = backwards ? threads - 1 - i : i;
            if (fibers[index].state != State::Ready) continue;
            go_on(index);
            went_on = true;
        }
        for (unsigned warp = 0; warp < threads; warp += WARP)
            went_on |= release(warp, warp + WARP < threads ? warp + WARP : threads, State::AtWarp);
        went_on |= release(0, threads, State::AtBlock);
        if (went_on) continue;
        for (unsigned i = 0; i < threads; i++) {
            if (fibers[i].state == State::Done) continue;
            fprintf(stderr, "emulated CUDA: thread %u waits for threads that do not come\n", i);
            abort();
        }
        return;
    }
}

}  // namespace

void wait_for_block() { give_up(State::AtBlock); }
void wait_for_warp() { give_up(State::AtWarp); }

namespace {

// Shows the warp something; gives the turn in which everybody's is to be seen.
unsigned show(const Shown &shown) {
    Fiber &fiber = fibers[current];
    const unsigned turn = fiber.turn;
    fiber.shown[turn] = shown;
    fiber.turn = 1 - turn;
    wait_for_warp();
    return turn;
}

}  // namespace

float exchange(float value, int mask) {
    Shown shown;
    shown.value = value;
    const unsigned turn = show(shown);
    return fibers[current ^ mask].shown[turn].value;
}

// As PTX's manual describes mma.m16n8k16: of a, thread 4 · r + c has the pairs of columns 2 c and 2
// c + 8 of rows r and r + 8; of b those of rows 2 c and 2 c + 8 of column r; of d columns 2 c and 2
// c + 1 of rows r and r + 8.
void mma(float *d, const unsigned *a, const unsigned *b, float (*to_f32)(unsigned short)) {
    Shown shown;
    for (int i = 0; i < 4; i++) shown.fragments.a[i] = a[i];
    for (int i = 0; i < 2; i++) shown.fragments.b[i] = b[i];
    const unsigned turn = show(shown);
    const unsigned warp = current / WARP * WARP, row = current % WARP / 4, column = current % 4 * 2;
    for (unsigned i = 0; i < 4; i++) {
        const unsigned of_a = warp + row * 4, of_b = warp + (column + i % 2) * 4;
        float sum = d[i];
        for (unsigned k = 0; k < 16; k++) {
            const unsigned member = k % 8 / 2, second = k / 8, shift = k % 2 * 16;
            const auto &with_a = fibers[of_a + member].shown[turn].fragments;
            const auto &with_b = fibers[of_b + member].shown[turn].fragments;
            sum += to_f32(static_cast<unsigned short>(with_a.a[second * 2 + i / 2] >> shift)) *
                   to_f32(static_cast<unsigned short>(with_b.b[second] >> shift));
        }
        d[i] = sum;
    }
}

namespace {

// Threads of the processor that share a launch's blocks; they are there until the process ends.
class Workers {
public:
    Workers() {
        const unsigned processors = std::thread::hardware_concurrency();
        for (unsigned i = 1; i < processors; i++) std::thread([this] { serve(); }).detach();
        helpers = processors > 1 ? processors - 1 : 0;
    }

    void run(const std::function<void()> &task) {
        {
            std::lock_guard<std::mutex> lock(mutex);
            current_task = &task;
            busy = helpers;
            round++;
        }
        begun.notify_all();
        task();
        std::unique_lock<std::mutex> lock(mutex);
        ended.wait(lock, [this] { return busy == 0; });
    }

private:
    void serve() {
        for (unsigned long served = 0;;) {
            const std::function<void()> *task;
            {
                std::unique_lock<std::mutex> lock(mutex);
                begun.wait(lock, [&] { return round != served; });
                served = round;
                task = current_task;
            }
            (*task)();
            std::lock_guard<std::mutex> lock(mutex);
            if (--busy == 0) ended.notify_one();
        }
    }

    std::mutex mutex;
    std::condition_variable begun, ended;
    const std::function<void()> *current_task = nullptr;
    unsigned helpers = 0, busy = 0;
    unsigned long round = 0;
};

}  // namespace

void run(const Body &of_thread, Index grid, Index block, bool backwards) {
    // Never ended: its threads may outlive everything else.
    static Workers &workers = *new Workers;
    const unsigned long blocks = 1ul * grid.x * grid.y * grid.z;
    std::atomic<unsigned long> next{0};
    const std::function<void()> work = [&] {
        grid_size = grid;
        block_size = block;
        for (unsigned long i; (i = next++) < blocks;) {
            const unsigned long at = backwards ? blocks - 1 - i : i;
            block_index = Index{unsigned(at % grid.x), unsigned(at / grid.x % grid.y),
                                unsigned(at / grid.x / grid.y)};
            run_block(of_thread, backwards);
        }
    };
    if (blocks == 1) {
        work();
    } else {
        workers.run(work);
    }
}

float f16_to_f32(unsigned short bits) {
    _Float16 half;
    memcpy(&half, &bits, sizeof half);
    return static_cast<float>(half);
}

float bf16_to_f32(unsigned short bits) {
    const unsigned wide = static_cast<unsigned>(bits) << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

unsigned short f32_to_f16(float value) {
    const _Float16 half = static_cast<_Float16>(value);
    unsigned short bits;
    memcpy(&bits, &half, sizeof bits);
    return bits;
}

}  // namespace emulated
