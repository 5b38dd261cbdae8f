// Compiled once per level, each time with other instruction flags and in a namespace of its own.
// Nothing here may be shared with code of another level, so no standard library beyond compile-time types.
#include "gather.hpp"
#include "product.hpp"
#include "product_rows.hpp"
#ifndef SPARSE_OPS_PAIRS
#include "add_norm.hpp"
#include "attention.hpp"
#include "cross_entropy.hpp"
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

// The ways of a product, in the order of their numbers; the first that takes a length is the default. A chunk of a
// panel stays in L2, or in L1 where every vector of inputs is used by one multiply-add only and L2 would be too slow
// for that. bfloat16 has few.
constexpr bool kWide = W == 16;
constexpr int64_t kAny = INT64_MAX;
template <int B>
constexpr int kVectors = B == 1 || (kWide && B == 4) ? 4 : 3;
template <int B>
constexpr int64_t kChunk = B == 1 ? (kWide ? 40 : 24) : (kWide ? 256 : 76);

template <int B, class T>
constexpr ProductVariant kVariants[] = {
    tokens_as_lanes<B, kVectors<B>, T>("tokens", kAny, kChunk<B>),
};

#ifndef SPARSE_OPS_PAIRS

template <>
constexpr ProductVariant kVariants<4, float>[] = {
    tokens_as_lanes<4, kVectors<4>, float>("tokens", kAny, kChunk<4>),
    tokens_as_lanes<4, 2, float>("tokens, 2 vectors", kAny, kChunk<4>),
};

#if SPARSE_OPS_LANES == 16
template <>
constexpr ProductVariant kVariants<1, float>[] = {
    tokens_as_lanes<1, kVectors<1>, float>("tokens", kAny, kChunk<1>),
    tokens_as_lanes<1, kVectors<1>, float>("tokens, 24 KB", kAny, 24),  // of an L1 of 32 KB in place of one of 48
};
#endif

// Of sixteen lanes tokens are the faster ones at every length (Ice Lake and Emerald Rapids).
constexpr int64_t kShort = kWide ? 0 : 2048;

template <>
constexpr ProductVariant kVariants<kLine, bf16>[] = {
    outputs_as_lanes<false, bf16>("outputs", kShort),
    tokens_as_lanes<kLine, kVectors<kLine>, bf16>("tokens", kAny, kChunk<kLine>),
};

// Rows of inputs that are longer than 2048, or a power of two long, throw each other out of the cache; packed ones do
// not.
template <>
constexpr ProductVariant kVariants<kLine, float>[] = {
    outputs_as_lanes<false, float>("outputs", kShort),
    tokens_as_lanes<kLine, kVectors<kLine>, float>("tokens", kAny, kChunk<kLine>),
#if SPARSE_OPS_LANES == 8
    outputs_as_lanes<true, float>("outputs, packed", kAny),
#endif
};

#endif

template <class T>
static const ProductVariant* product_variant(int64_t block, int number) {
    return with_block(block, [&](auto b) -> const ProductVariant* {
        if constexpr (b > 1 || kLevelPairs == 1) {
            constexpr int COUNT = sizeof(kVariants<b, T>) / sizeof(ProductVariant);
            return number < COUNT ? &kVariants<b, T>[number] : nullptr;
        }
        return nullptr;
    });
}

extern const Level level;

#ifdef SPARSE_OPS_PAIRS

static const ProductVariant* product(int64_t block, bool, int number) { return product_variant<bf16>(block, number); }

const Level level = {W, kLevelPairs, product};

#else

static const ProductVariant* product(int64_t block, bool half, int number) {
    return half ? product_variant<bf16>(block, number) : product_variant<float>(block, number);
}

static int64_t gradient_panel(int64_t block) { return block > 1 ? kSumTokens : kDotVectors * W; }

template <class T>
static void gradient_of(const Gradient& job, int64_t first, int64_t last, float* sums, float* bias) {
    with_block(job.block, [&](auto b) {
        if constexpr (b > 1)
            gradient_blocks<b, T>(job, first, last, sums, bias);
        else
            gradient_dots<T>(job, first, last, sums, bias);
    });
}

static void gradient(const Gradient& job, int64_t first, int64_t last, float* sums, float* bias) {
    job.half ? gradient_of<bf16>(job, first, last, sums, bias) : gradient_of<float>(job, first, last, sums, bias);
}

const Level level = {
    W,
    kLevelPairs,
    product,
    gradient_panel,
    gradient,
    attention,
    kHalfWidth,
    half_round,
    half_products,
    add_norm,
    add_norm_gradient,
    cross_entropy,
    cross_entropy_gradient,
};

#endif

}  // namespace SPARSE_OPS_LEVEL
