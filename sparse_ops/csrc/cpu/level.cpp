// Compiled once per level, each time with other instruction flags and in a namespace of its own.
// Nothing here may be shared with code of another level, so no standard library beyond compile-time types.
#include "gather.hpp"
#include "product.hpp"
#include "product_rows.hpp"
#ifndef SPARSE_OPS_PAIRS
#include "add_norm.hpp"
#include "attention.hpp"
#include "gradient.hpp"
#include "half.hpp"
#endif

namespace SPARSE_OPS_LEVEL {

constexpr int kLevelPairs = kPairs<bf16>;

template <class Function>
static auto with_block(int64_t block, const Function& function) {
    switch (block) {
        case 16: return function(std::integral_constant<int, 16>{});
        case 8: return function(std::integral_constant<int, 8>{});
        case 4: return function(std::integral_constant<int, 4>{});
        default: return function(std::integral_constant<int, 1>{});
    }
}

static int64_t product_panel_tokens(int64_t block, bool lanes_are_outputs) {
    return lanes_are_outputs ? kRowPanel : with_block(block, [](auto b) -> int64_t { return kVectors<b> * W; });
}
static int64_t product_chunk(int64_t block) {
    return with_block(block, [](auto b) { return chunk_features<b>(); });
}

template <class T>
static void gather_of(const Product& job, int64_t first, int64_t last) {
    if (job.lanes_are_outputs) return gather<kOutputLanes, kOutputLanes, 1, T>(job, first, last);
    with_block(job.block, [&](auto b) {
        if constexpr (b > 1) gather<b, kOutputs<b>, kPairs<T>, T>(job, first, last);
    });
}

template <class T>
static void product_of(const Product& job) {
    if (job.lanes_are_outputs) return product_rows<T>(job);
    with_block(job.block, [&](auto b) {
        if constexpr (b > 1 || kLevelPairs == 1) product_blocks<b, T>(job);
    });
}

extern const Level level;

#ifdef SPARSE_OPS_PAIRS

const Level level = {
    W,
    kLevelPairs,
    product_panel_tokens,
    product_chunk,
    nullptr,
    gather_of<bf16>,
    product_of<bf16>,
    nullptr,
    nullptr,
    0,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

#else

// All of a panel's inputs and the next panel's raw ones should stay in L2.
static int64_t gradient_panel_tokens(int64_t block) { return block > 1 ? 48 : kDotVectors * W; }

template <class T>
static void gradient_of(const Gradient& job, int64_t first, int64_t last, float* sums, float* bias) {
    with_block(job.block, [&](auto b) {
        if constexpr (b > 1)
            gradient_blocks<b, T>(job, first, last, sums, bias);
        else
            gradient_dots<T>(job, first, last, sums, bias);
    });
}

static void gather(const Product& job, int64_t first, int64_t last) {
    job.half ? gather_of<bf16>(job, first, last) : gather_of<float>(job, first, last);
}

static void product(const Product& job) { job.half ? product_of<bf16>(job) : product_of<float>(job); }

static void gradient(const Gradient& job, int64_t first, int64_t last, float* sums, float* bias) {
    job.half ? gradient_of<bf16>(job, first, last, sums, bias) : gradient_of<float>(job, first, last, sums, bias);
}

const Level level = {
    W,        kLevelPairs, product_panel_tokens, product_chunk, gradient_panel_tokens, gather,   product,
    gradient, attention,   kHalfWidth,           half_round,    half_products,         add_norm, add_norm_gradient,
};

#endif

}  // namespace SPARSE_OPS_LEVEL
