// The softmax over a vocabulary behind a cross entropy: its two passes over the scores, which lie word by word. Each
// reads them once; the backward one leaves the gradient in their place.
#pragma once
#include "job.hpp"
#include "power.hpp"

namespace SPARSE_OPS_LEVEL {

constexpr int kWords = 8;  // a token's running maximum moves once for so many

// Words [first, last): each token's largest score, and the sum of exponentials of the others' distance from it,
// [tokens] each. That distance is exact, and only then times log2 e: so no exponential is above 1, however large scores
// are.
static void cross_entropy(const CrossEntropyCall& call, int64_t first, int64_t last, float* largest, float* sums) {
    const int64_t n = call.tokens;
    for (int64_t j = 0; j < n; j += W) store(largest + j, broadcast(-__FLT_MAX__)), store(sums + j, V{});
    for (int64_t word = first; word < last; word += kWords) {
        const int words = (int)(last - word < kWords ? last - word : kWords);
        for (int64_t j = 0; j < n; j += W) {
            const V before = load(largest + j);
            V scores[kWords], most = before;
            for (int i = 0; i < words; ++i) {
                scores[i] = load(call.scores + (word + i) * n + j) + call.bias[word + i];
                most = scores[i] > most ? scores[i] : most;
            }
            V sum = load(sums + j) * power_of_two((before - most) * kLog2e);
            for (int i = 0; i < words; ++i) sum += power_of_two((scores[i] - most) * kLog2e);
            store(largest + j, most), store(sums + j, sum);
        }
    }
}

static void cross_entropy_gradient(const CrossEntropyCall& call, int64_t first, int64_t last) {
    const int64_t n = call.tokens;
    for (int64_t word = first; word < last; ++word) {
        float* scores = call.scores + word * n;
        V sum = {};
        for (int64_t j = 0; j < n; j += W) {
            const V below = load(scores + j) + call.bias[word] - load(call.largest + j);
            const V gradient = power_of_two(below * kLog2e) * load(call.share + j);
            store(scores + j, gradient);
            sum += gradient;
        }
        call.dbias[word] = sum_of(sum);
    }
}

}  // namespace SPARSE_OPS_LEVEL
