#pragma once

#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <utility>

namespace emulated {

// What each thread of a launch does.
typedef std::function<void()> Body;

// A kernel that is given its arguments as the driver is: an array of pointers to them.
struct Kernel {
    unsigned most_threads;
    Body (*bind)(void **arguments);
};

// By name.
std::map<std::string, Kernel> &kernels();

struct Registration {
    Registration(const char *name, unsigned most_threads, Body (*bind)(void **)) {
        kernels()[name] = Kernel{most_threads, bind};
    }
};

template <auto KERNEL>
struct Bound;

template <class... Arguments, void (*KERNEL)(Arguments...)>
struct Bound<KERNEL> {
    static Body bind(void **arguments) {
        const std::tuple<Arguments...> copied =
            read(arguments, std::index_sequence_for<Arguments...>());
        return [copied] { std::apply(KERNEL, copied); };
    }

    template <size_t... I>
    static std::tuple<Arguments...> read(void **arguments, std::index_sequence<I...>) {
        return {*static_cast<Arguments *>(arguments[I])...};
    }
};

}  // namespace emulated
