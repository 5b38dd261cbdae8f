// One vector of floats, as wide as the level this file is compiled for. GCC and Clang vector extensions, so that the
// same source serves AVX-512, AVX2 and whatever the compiler's baseline has.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#ifndef SPARSE_OPS_LANES
#error "compile with -DSPARSE_OPS_LANES=16 (AVX-512), 8 (AVX2) or 4 (portable)"
#endif
#define INLINE static inline __attribute__((always_inline))

namespace SPARSE_OPS_LEVEL {

constexpr int W = SPARSE_OPS_LANES;
typedef float V __attribute__((vector_size(4 * W)));
typedef float VU __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef uint16_t HU __attribute__((vector_size(2 * W), aligned(2), may_alias));
struct bf16 {
    uint16_t bits;
};

INLINE V load(const float* p) { return *(const VU*)p; }
INLINE void store(float* p, V v) { *(VU*)p = v; }

// Large results go past the caches where a vector is a whole cache line: the line is then not fetched before it is
// written, which takes two thirds of the time of writing (Emerald Rapids: 13 against 39 GB/s), and who reads it next, a
// pass over more than the caches hold, waits no longer for it. Those of fewer floats than this do not, as they may
// still be in a cache when they are read. A thread that has written any ends with `past_caches_done`, which orders them
// before all that follows.
constexpr int64_t kPastCaches = 1 << 19;
constexpr bool kVectorIsLine = W == 16;
// Whether `count` floats from p on, in rows `stride` apart, do so; of null there is nothing to write.
template <class T>
INLINE bool goes_past_caches(const T* p, int64_t stride, int64_t count) {
    return kVectorIsLine && std::is_same<T, float>::value && count >= kPastCaches && (uintptr_t)p % 64 == 0 &&
           stride % 16 == 0;
}
INLINE void put(float* p, V v, bool past_caches) {
#if SPARSE_OPS_LANES == 16 && defined(__AVX512F__)
    if (past_caches) return _mm512_stream_ps(p, (__m512)v);
#endif
    (void)past_caches;
    store(p, v);
}

INLINE void past_caches_done() {
#if SPARSE_OPS_LANES == 16 && defined(__AVX512F__)
    _mm_sfence();
#endif
}

INLINE V broadcast(float s) { return s - V{}; }
INLINE float from_bits(uint32_t bits) {
    float s;
    memcpy(&s, &bits, sizeof(s));
    return s;
}
INLINE V broadcast_bits(uint32_t bits) {
#if SPARSE_OPS_LANES == 16 && defined(__AVX512F__)
    return (V)_mm512_set1_epi32((int)bits);  // in one instruction from where it is
#else
    return broadcast(from_bits(bits));
#endif
}

// Keep a value in a register here. GCC otherwise folds one load into several multiply-adds, each of which then loads
// again, and spills accumulators that it renames: together a third of the speed of the loops below.
INLINE void pin(V& v) {
#if defined(__AVX512F__)
    asm volatile("" : "+v"(v));
#elif defined(__SSE__) && (SPARSE_OPS_LANES == 4 || (SPARSE_OPS_LANES == 8 && defined(__AVX__)))
    asm volatile("" : "+x"(v));
#elif defined(__aarch64__) && SPARSE_OPS_LANES == 4
    asm("" : "+w"(v));
#else
    (void)v;  // a vector of several registers
#endif
}
INLINE void pin(const float*& p) { asm("" : "+r"(p)); }    // one base address instead of one per unrolled access
INLINE void pin(uint64_t& bits) { asm("" : "+r"(bits)); }  // loaded once, as one number
INLINE V load_pinned(const float* p) {
    V v = load(p);
    pin(v);
    return v;
}
template <int N>
INLINE void load_pinned(const float* p, V (&v)[N]) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) v[i] = load_pinned(p + i * W);
}
// In place: given the choice, GCC overwrites a factor, and then needs one more register.
INLINE void multiply_add(V& sum, V a, V b) {
#if SPARSE_OPS_LANES == 16 && defined(__AVX512F__)
    asm volatile("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#elif SPARSE_OPS_LANES == 8 && defined(__FMA__)
    asm volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#else
    sum += a * b;
    pin(sum);
#endif
}
INLINE void multiply_add(V& sum, const float* a, V b) {  // loaded by the multiply-add itself
#if SPARSE_OPS_LANES == 16 && defined(__AVX512F__)
    asm volatile("vfmadd231ps %1, %2, %0" : "+v"(sum) : "m"(*(const VU*)a), "v"(b));
#elif SPARSE_OPS_LANES == 8 && defined(__FMA__)
    asm volatile("vfmadd231ps %1, %2, %0" : "+x"(sum) : "m"(*(const VU*)a), "x"(b));
#else
    multiply_add(sum, load(a), b);
#endif
}

// Two bfloat16 numbers of each lane at a time: sum += a.low * b.low + a.high * b.high in float32.
INLINE void multiply_add_pairs(V& sum, V a, V b) {
#if SPARSE_OPS_LANES == 16 && defined(__AVX512BF16__)
    sum = (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    U x = (U)a, y = (U)b;
    sum += (V)(x << 16) * (V)(y << 16);
    sum += (V)(x & 0xffff0000) * (V)(y & 0xffff0000);
#endif
    pin(sum);
}
INLINE V broadcast_pair(const float* p) {  // as bits: what two numbers make as one float may be a signalling NaN
    uint32_t bits;
    memcpy(&bits, p, sizeof(bits));
    return (V)(bits - U{});
}

INLINE V load(const bf16* p) { return (V)(__builtin_convertvector(*(const HU*)p, U) << 16); }
INLINE void store(bf16* p, V v) {  // to nearest, ties to even; a NaN stays a NaN
    U u = (U)v;
    U rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    U is_nan = (U)((u & 0x7fffffff) > 0x7f800000);
    *(HU*)p = __builtin_convertvector((rounded & ~is_nan) | (0x7fc0 & is_nan), HU);
}

INLINE void put(bf16* p, V v, bool) { store(p, v); }

// Half a vector from each of two places, and back.
INLINE V load_halves(const float* low, const float* high) {
#if SPARSE_OPS_LANES == 16 && defined(__AVX512F__)
    __m512d v = _mm512_castpd256_pd512(_mm256_loadu_pd((const double*)low));
    return (V)_mm512_insertf64x4(v, _mm256_loadu_pd((const double*)high), 1);
#elif SPARSE_OPS_LANES == 8 && defined(__AVX__)
    return (V)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
#else
    float v[W];
    memcpy(v, low, sizeof(v) / 2), memcpy(v + W / 2, high, sizeof(v) / 2);
    return load(v);
#endif
}
// The same by whole loads and a blend, which takes no turn of a multiply-add; the W / 2 floats after the low half and
// before the high one are read too.
INLINE V blend_halves(const float* low, const float* high) {
#if SPARSE_OPS_LANES == 16 && defined(__AVX512F__)
    return (V)_mm512_mask_blend_ps(0xff00, (__m512)load(low), (__m512)load(high - W / 2));
#elif SPARSE_OPS_LANES == 8 && defined(__AVX__)
    return (V)_mm256_blend_ps((__m256)load(low), (__m256)load(high - W / 2), 0xf0);
#else
    return load_halves(low, high);
#endif
}

// The first n < W elements; the rest is zero, or left alone in memory.
template <class T>
INLINE V load_some(const T* p, int n) {
    T part[W] = {};
    memcpy(part, p, n * sizeof(T));
    return load(part);
}
template <class T>
INLINE void store_some(T* p, V v, int n) {
    T part[W];
    store(part, v);
    memcpy(p, part, n * sizeof(T));
}

// Lanes whose bit S is clear hold pair (a, b)'s groups at the low (or high) side of S: the step of a transposition.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE2(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef SHUFFLE2
#define SHUFFLE2(a, b, ...) __builtin_shuffle(a, b, I{__VA_ARGS__})
#endif
template <int S, size_t... J>
INLINE V low_sides(V a, V b, std::index_sequence<J...>) {
    return SHUFFLE2(a, b, (((int)J & S) ? W + (int)J - S : (int)J)...);
}
template <int S, size_t... J>
INLINE V high_sides(V a, V b, std::index_sequence<J...>) {
    return SHUFFLE2(a, b, (((int)J & S) ? W + (int)J : (int)J + S)...);
}
using Lanes = std::make_index_sequence<W>;

// Transpose K = W / B vectors as a K x K matrix of groups of B lanes.
template <int B, int S = W / 2>
INLINE void transpose(V (&a)[W / B]) {
    if constexpr (S >= B) {
        constexpr int K = W / B, D = S / B;
#pragma GCC unroll 16
        for (int i = 0; i < K; ++i) {
            if (i & D) continue;
            V lo = low_sides<S>(a[i], a[i + D], Lanes{});
            V hi = high_sides<S>(a[i], a[i + D], Lanes{});
            a[i] = lo;
            a[i + D] = hi;
        }
        transpose<B, S / 2>(a);
    }
}

// K = W / B rows of W elements, `stride` apart, transposed as K x K groups of B lanes.
template <int B, class T>
INLINE void load_transposed(const T* p, int64_t stride, V (&a)[W / B]) {
    if constexpr (W == 8 && B == 1 && std::is_same<T, float>::value) {
        // The step across halves is made by the loads, so that only half of the shuffles of `transpose` are left.
#pragma GCC unroll 8
        for (int i = 0; i < W; ++i) {
            const float* at = p + i % 4 * stride + i / 4 * 4;
            a[i] = load_halves(at, at + 4 * stride);
        }
        transpose<1, 2>(a);
        return;
    }
#if SPARSE_OPS_LANES == 16 && defined(__AVX512F__)
    if constexpr (B == 1 && std::is_same<T, float>::value) {
        // Likewise two of four steps: quarters of four rows are put together as they are loaded.
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
            const float* at = p + i % 4 * stride + i / 4 * 4;
            __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(at));
            v = _mm512_mask_broadcast_f32x4(v, 0x00f0, _mm_loadu_ps(at + 4 * stride));
            v = _mm512_mask_broadcast_f32x4(v, 0x0f00, _mm_loadu_ps(at + 8 * stride));
            a[i] = (V)_mm512_mask_broadcast_f32x4(v, 0xf000, _mm_loadu_ps(at + 12 * stride));
        }
        transpose<1, 2>(a);
        return;
    }
#endif
#pragma GCC unroll 16
    for (int i = 0; i < W / B; ++i) a[i] = load(p + i * stride);
    transpose<B>(a);
}

// Group k (of B lanes) of the result is the sum over the groups of a[k].
template <int B, int N = W / B>
INLINE V sum_groups(V (&a)[W / B]) {
    if constexpr (N == 1) {
        return a[0];
    } else {
        constexpr int S = N / 2 * B;
#pragma GCC unroll 8
        for (int i = 0; i < N / 2; ++i)
            a[i] = low_sides<S>(a[i], a[i + N / 2], Lanes{}) + high_sides<S>(a[i], a[i + N / 2], Lanes{});
        return sum_groups<B, N / 2>(a);
    }
}

// out[o] = v with every group of B lanes filled with the group's element o, for o in [E, B).
template <int B, int E, size_t... J>
INLINE void spread(V v, float* out, std::index_sequence<J...> lanes) {
    if constexpr (E < B) {
        store(out + E * W, SHUFFLE2(v, v, ((int)J / B * B + E)...));
        spread<B, E + 1>(v, out, lanes);
    }
}

INLINE float sum_of(V v) {
    float part[W], sum = 0;
    store(part, v);
    for (int i = 0; i < W; ++i) sum += part[i];
    return sum;
}

}  // namespace SPARSE_OPS_LEVEL
