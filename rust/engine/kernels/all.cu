// All kernels, as one module.
#include "codec.cu"
#include "product.cu"
#include "transformer.cu"
