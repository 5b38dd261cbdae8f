// Compiled once per level, each time with other instruction flags and in a namespace of its own.
// Nothing here may be shared with code of another level, so no standard library beyond compile-time types.
#ifndef SPARSE_OPS_PAIRS
#include "gradient.hpp"
#endif
#include "product.hpp"

namespace SPARSE_OPS_LEVEL {

static int64_t product_panel_tokens(int64_t block) {
    switch (block) {
        case 16: return kVectors<16> * W;
        case 8: return kVectors<8> * W;
        case 4: return kVectors<4> * W;
        default: return kVectors<1> * W;
    }
}
static int64_t product_chunk(int64_t block) {
    switch (block) {
        case 16: return chunk_features<16>();
        case 8: return chunk_features<8>();
        case 4: return chunk_features<4>();
        default: return chunk_features<1>();
    }
}

template <class T>
static void product_of(const Product& job) {
    switch (job.block) {
        case 16: product_transposed<16, T>(job); break;
        case 8: product_transposed<8, T>(job); break;
        case 4: product_transposed<4, T>(job); break;
#ifndef SPARSE_OPS_PAIRS
        default: product_blocks<1, false, T>(job);
#endif
    }
}

extern const Level level;

#ifdef SPARSE_OPS_PAIRS

const Level level = {2, product_panel_tokens, product_chunk, nullptr, product_of<bf16>, nullptr};

#else

// All of a panel's inputs and the next panel's raw ones should stay in L2.
static int64_t gradient_panel_tokens(int64_t block) { return block > 1 ? 48 : kDotVectors * W; }

template <class T>
static void gradient_of(const Gradient& job, int64_t first, int64_t last, float* sums, float* bias) {
    switch (job.block) {
        case 16: gradient_blocks<16, T>(job, first, last, sums, bias); break;
        case 8: gradient_blocks<8, T>(job, first, last, sums, bias); break;
        case 4: gradient_blocks<4, T>(job, first, last, sums, bias); break;
        default: gradient_dots<T>(job, first, last, sums, bias);
    }
}

static void product(const Product& job) { job.half ? product_of<bf16>(job) : product_of<float>(job); }

static void gradient(const Gradient& job, int64_t first, int64_t last, float* sums, float* bias) {
    job.half ? gradient_of<bf16>(job, first, last, sums, bias) : gradient_of<float>(job, first, last, sums, bias);
}

const Level level = {1, product_panel_tokens, product_chunk, gradient_panel_tokens, product, gradient};

#endif

}  // namespace SPARSE_OPS_LEVEL
