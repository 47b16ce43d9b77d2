#pragma once

#include "emulated.h"
#include "kernels.h"

namespace emulated {

// Runs a launch's blocks, on all processors. `backwards`: the last block and thread first.
void run(const Body &of_thread, Index grid, Index block, bool backwards);

}  // namespace emulated
