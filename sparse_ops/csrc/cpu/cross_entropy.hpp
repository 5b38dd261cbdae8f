// The softmax over a vocabulary behind a cross entropy: its two passes over the scores, which lie word by word. Each
// reads them once; the backward one leaves the gradient in their place.
#pragma once
#include "job.hpp"
#include "power.hpp"

namespace SPARSE_OPS_LEVEL {

constexpr int kWords = 8;  // a token's running maximum moves once for so many

// Words [first, last): each token's largest score, times log2 e, and the sum of exponentials of the others' distance
// from it, [tokens] each.
static void cross_entropy(const CrossEntropyCall& call, int64_t first, int64_t last, float* largest, float* sums) {
    const int64_t n = call.tokens;
    for (int64_t j = 0; j < n; j += W) store(largest + j, broadcast(-__FLT_MAX__)), store(sums + j, V{});
    for (int64_t word = first; word < last; word += kWords) {
        const int words = (int)(last - word < kWords ? last - word : kWords);
        for (int64_t j = 0; j < n; j += W) {
            const V before = load(largest + j);
            V scores[kWords], most = before;
            for (int i = 0; i < words; ++i) {
                scores[i] = (load(call.scores + (word + i) * n + j) + call.bias[word + i]) * kLog2e;
                most = scores[i] > most ? scores[i] : most;
            }
            V sum = load(sums + j) * power_of_two(before - most);
            for (int i = 0; i < words; ++i) sum += power_of_two(scores[i] - most);
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
            const V score = (load(scores + j) + call.bias[word]) * kLog2e;
            const V gradient = power_of_two(score - load(call.largest + j)) * load(call.share + j);
            store(scores + j, gradient);
            sum += gradient;
        }
        call.dbias[word] = sum_of(sum);
    }
}

}  // namespace SPARSE_OPS_LEVEL
