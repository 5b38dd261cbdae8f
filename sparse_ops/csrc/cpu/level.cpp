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

// The ways of a product, in the order of their numbers. A chunk of a panel stays in L2, or in L1 where every vector of
// inputs is used by one multiply-add only and L2 would be too slow for that. What AVX-512 has alone has not been
// measured yet; said is what its registers and its two loads beside two multiply-adds a cycle let expect. bfloat16 has
// few.
constexpr bool kWide = W == 16;
constexpr int64_t kAny = INT64_MAX;
constexpr bool kPast = true, kKept = false;  // results: past the caches where the level can do that, or not
template <int B>
constexpr int kVectors = B == 1 || (kWide && B == 4) ? 4 : 3;
template <int B>
constexpr int64_t kChunk = B == 1 ? 24 : (kWide ? 256 : 76);

template <int B, class T>
constexpr ProductVariant kVariants[] = {
    tokens_as_lanes<B, kVectors<B>, T>("tokens", kAny, kChunk<B>, kPast),
#if SPARSE_OPS_LANES == 16 && !defined(SPARSE_OPS_PAIRS)
    // Activations that L3 holds (1,024 tokens and fewer) are read there by what comes next.
    tokens_as_lanes<B, kVectors<B>, T>("tokens, kept", kAny, kChunk<B>, kKept),
#endif
};

#ifndef SPARSE_OPS_PAIRS

template <>
constexpr ProductVariant kVariants<4, float>[] = {
    tokens_as_lanes<4, kVectors<4>, float>("tokens", kAny, kChunk<4>, kPast),
    tokens_as_lanes<4, 2, float>("tokens, 2 vectors", kAny, kChunk<4>, kPast),
#if SPARSE_OPS_LANES == 16
    // Four multiply-adds for an input make 32 bytes a cycle, which L2 hardly has.
    tokens_as_lanes<4, kVectors<4>, float>("tokens, in L1", kAny, 24, kPast),
    tokens_as_lanes<4, kVectors<4>, float>("tokens, kept", kAny, kChunk<4>, kKept),
#endif
};

#if SPARSE_OPS_LANES == 16
template <>
constexpr ProductVariant kVariants<1, float>[] = {
    tokens_as_lanes<1, kVectors<1>, float>("tokens", kAny, kChunk<1>, kPast),
    // In L1 a row has ten blocks of a chunk, of a tenth, and then a branch that was foretold wrong and sums that go and
    // come. Eight vectors: nine loads for eight multiply-adds in place of five for four, and half as many such
    // branches.
    tokens_as_lanes<1, kVectors<1>, float>("tokens, in L2", kAny, 256, kPast),
    tokens_as_lanes<1, 8, float>("tokens, 8 vectors in L2", kAny, 256, kPast),
    tokens_as_lanes<1, kVectors<1>, float>("tokens, kept", kAny, kChunk<1>, kKept),
};
#endif

template <>
constexpr ProductVariant kVariants<kLine, bf16>[] = {
    outputs_as_lanes<false, bf16>("outputs", 2048, kPast),
    tokens_as_lanes<kLine, kVectors<kLine>, bf16>("tokens", kAny, kChunk<kLine>, kPast),
};

// Rows of inputs that are longer than 2048, or a power of two long, throw each other out of the cache; packed ones do
// not.
template <>
constexpr ProductVariant kVariants<kLine, float>[] = {
    outputs_as_lanes<false, float>("outputs", 2048, kPast),
    tokens_as_lanes<kLine, kVectors<kLine>, float>("tokens", kAny, kChunk<kLine>, kPast),
#if SPARSE_OPS_LANES > 4
    outputs_as_lanes<true, float>("outputs, packed", kAny, kPast),
#endif
#if SPARSE_OPS_LANES == 16
    outputs_as_lanes<true, float>("outputs, packed, kept", kAny, kKept),
    tokens_as_lanes<kLine, kVectors<kLine>, float>("tokens, kept", kAny, kChunk<kLine>, kKept),
#endif
};

#endif

template <class T>
static const ProductVariant* product_variant(int64_t block, int number) {
    return with_block(block, [&](auto b) -> const ProductVariant* {
        if constexpr (b > 1 || kLevelPairs == 1) {
            constexpr int COUNT = sizeof(kVariants<b, T>) / sizeof(ProductVariant);
            const ProductVariant* found = number < COUNT ? &kVariants<b, T>[number] : nullptr;
            return found && (found->streams || kCanStream<T>) ? found : nullptr;  // those that do not are the last
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
