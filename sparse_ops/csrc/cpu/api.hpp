// The C interface: what sparse_ops/native.py calls through ctypes. It fills these structures by its own declaration of
// them, and tests/sparse_ops/test_native.py compares the two. Arrays are contiguous and row-major.
#pragma once
#include <cstdint>

// GOMP_parallel of the OpenMP runtime that torch runs on, so that these threads are torch's own.
typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);

// The blocks of a weight by row and by column, as sparse_ops.pattern.BlockIndex. A slot is a place for one block's
// values: slot k holds the block at (rows[k], cols[k]) of the grid of blocks. nnz: the number of slots.
struct BlockIndex {
    const int32_t* rows;       // [nnz] block row of each slot
    const int32_t* cols;       // [nnz] block column of each slot
    const int32_t* row_ptr;    // [block rows + 1]: row r has the slots row_slots[row_ptr[r]:row_ptr[r + 1]]
    const int32_t* row_slots;  // [nnz] slots by row, then by column
    const int32_t* col_ptr;    // [block columns + 1]: the same of columns
    const int32_t* col_slots;  // [nnz] slots by column, then by row
};

// Y = X W^T + bias of a weight W, or GELU of it. dX = dY W is this too, with W transposed: `x` is then dY and `y` is
// dX.
struct ProductCall {
    const void* x;       // [tokens, n_in]
    void* y;             // [tokens, n_out]
    void* slope;         // [tokens, n_out]: with `gelu` its derivative at X W^T + bias, or null: not wanted; without
                         // it what y is multiplied by before it is written, or null: nothing
    const float* bias;   // [n_out], float32 always; null: none
    const void* values;  // [nnz, block, block]: blocks of W in slot order, as they stand in it
    BlockIndex index;    // of W
    int64_t blocks;      // nnz
    int64_t tokens;      // rows of x and y
    int64_t n_in;        // features of x
    int64_t n_out;       // features of y
    int64_t block;       // 1, 4, 8 or 16
    Parallel parallel;   // runs the threads; null: they are started for this call
    int32_t threads;     // at most so many
    int32_t level;       // instruction level, see sparse_ops_best_level
    int32_t variant;     // number of the way to carry it out; -1, or one that there is not: as on the first machine
    bool half;           // x, y, slope and values are bfloat16, else float32
    bool gelu;           // y is the GELU of the product
    bool transposed;     // multiply by W in place of W^T
};

// dW = dY^T X at the blocks of W, and the bias's gradient.
struct GradientCall {
    const void* x;      // [tokens, n_in]
    const void* dy;     // [tokens, n_out]
    void* out;          // [nnz, block, block]: dW in slot order
    void* bias;         // [n_out]: dy summed over tokens; null: not wanted
    BlockIndex index;   // of W
    int64_t blocks;     // nnz
    int64_t tokens;     // rows of x and dy
    int64_t n_in;       // features of x
    int64_t n_out;      // features of dy
    int64_t block;      // 1, 4, 8 or 16
    Parallel parallel;  // as of a product
    int32_t threads;    // at most so many
    int32_t level;      // instruction level
    int32_t variant;    // as of a product
    bool half;          // x, dy, out and bias are bfloat16, else float32
};

// What random bits follow from, and the place of each.
struct RandomKey {
    uint32_t low;
    uint32_t high;
};

// How halves are rounded: to nearest, ties to even, or stochastically with random bits that follow from the key and an
// element's place.
struct HalfKey {
    RandomKey random;
    bool stochastic;
};

// Every element of x rounded to a half, which is kept in a float.
struct HalfRoundCall {
    const float* x;     // [count]
    float* y;           // [count]; may be x
    int64_t count;      // elements
    int64_t place;      // of the first element, for the random bits
    HalfKey key;        // how it is rounded
    Parallel parallel;  // as of a product
    int32_t threads;    // at most so many
    int32_t level;      // instruction level
};

// Small matrix products, each of an IPU's matrix unit: 16 terms are added up in float32, then the running sum is
// rounded to a half before the next 16 are. The sum of job j in row m and column n is over its `count` terms k of
// a[a_base[j] + m * a_row + a_step[k]] * b[b_base[j] + b_step[k] + n], k from first[j] on.
struct HalfProductsCall {
    const float* a;
    const float* b;
    float* c;               // [jobs, rows, columns]; the last sum is not rounded
    const int64_t* a_base;  // [jobs]
    const int64_t* b_base;  // [jobs]
    const int64_t* first;   // [jobs]
    const int64_t* count;   // [jobs]
    const int64_t* a_step;  // [terms of all jobs]
    const int64_t* b_step;  // [terms of all jobs]
    int64_t jobs;
    int64_t rows;
    int64_t columns;
    int64_t a_row;
    HalfKey key;        // how sums are rounded
    Parallel parallel;  // as of a product
    int32_t threads;    // at most so many
    int32_t level;      // instruction level
    bool rounded;       // else sums stay float32
};

// What is dropped: where random bits are below the threshold. Nothing where that is 0.
struct Dropout {
    RandomKey key;
    uint32_t threshold;
    float scale;  // of what is kept
};

// Attention of one layer: softmax of the scaled scores of queries and keys, with dropout, times the values. Backward
// where `dout` is there: probabilities are made anew, and their dropout from the key.
struct AttentionCall {
    const float* qkv;   // [batch, length, 3, heads, width]: queries, keys and values
    const bool* seen;   // [batch, length]: which keys are seen; a row that sees none gives zeros
    const float* dout;  // [batch, length, heads, width]: gradient of the result; null: forward
    float* out;         // the result, as dout; backward: the gradient of qkv, as that
    float* rows;        // [batch, heads, length, 2]: largest score of each row, times log2 e, and 1 / its sum of
                        // exponentials; written forward, read backward
    int64_t batch;      // sequences
    int64_t length;     // tokens of each
    int64_t heads;      // of each token
    int64_t width;      // features of a head, a multiple of 16
    Dropout dropout;    // of probabilities [batch, heads, length, length]; the place of each is its number there
    Parallel parallel;  // as of a product
    int32_t threads;    // at most so many
    int32_t level;      // instruction level
};

// y = LayerNorm(residual + dropout(x)), over the features of each token.
struct AddNormCall {
    const float* x;         // [tokens, features]
    const float* residual;  // [tokens, features]
    const float* weight;    // [features]: LayerNorm's
    const float* bias;      // [features]
    float* y;               // [tokens, features]
    float* sum;             // [tokens, features]: residual + dropout(x), for the backward pass
    float* statistics;      // [tokens, 2]: mean of the sum, and one over its standard deviation
    int64_t tokens;
    int64_t features;   // a multiple of 16
    Dropout dropout;    // a feature's place is token * features + feature
    float eps;          // added to the variance
    Parallel parallel;  // as of a product
    int32_t threads;    // at most so many
    int32_t level;      // instruction level
};

// Its backward pass.
struct AddNormGradientCall {
    const float* dy;          // [tokens, features]
    const float* sum;         // [tokens, features], as the forward pass left it
    const float* statistics;  // [tokens, 2], as the forward pass left it
    const float* weight;      // [features]
    float* dx;                // [tokens, features]; without dropout it is dresidual, and this is not written
    float* dresidual;         // [tokens, features]
    float* dweight;           // [features]
    float* dbias;             // [features]
    int64_t tokens;
    int64_t features;   // a multiple of 16
    Dropout dropout;    // the forward pass's
    Parallel parallel;  // as of a product
    int32_t threads;    // at most so many
    int32_t level;      // instruction level
};

// The softmax of a cross entropy over scores plus bias, forward; backward, where `share` is there, each token's softmax
// times its share takes the place of its scores.
struct CrossEntropyCall {
    float* scores;       // [words, tokens]
    const float* bias;   // [words]
    const float* share;  // [tokens]: the gradient of its log of the sum of exponentials over that sum; null: forward
    float* largest;      // [tokens]: the largest score; written forward, read backward
    float* sums;         // [tokens]: sum of exponentials of the scores' distance from it; written forward
    float* dbias;        // [words]: what has taken the scores' place, summed over tokens; written backward
    int64_t words;
    int64_t tokens;     // a multiple of 16
    Parallel parallel;  // as of a product
    int32_t threads;    // at most so many
    int32_t level;      // instruction level
};

#define EXPORT __attribute__((visibility("default")))

extern "C" {

// 3: AVX-512 with AVX512_BF16, 2: AVX-512, 1: AVX2, 0: portable; the best of those compiled (SPARSE_OPS_LEVELS of them)
// that this processor and its operating system run.
EXPORT int sparse_ops_best_level();

// The level that is taken where none is named: the best one, or a lower one that is faster on this processor.
EXPORT int sparse_ops_default_level();

// The name of a product's, or a gradient's, variant with this number, from 0 on; null: there are no more. All variants
// of a call give the same bits.
EXPORT const char* sparse_ops_product_variant(int level, bool half, int64_t block, int64_t number);
EXPORT const char* sparse_ops_gradient_variant(int64_t block, int64_t number);
// The number of a product's variant that is taken where none is named; of a gradient's it is 0.
EXPORT int64_t sparse_ops_default_variant(int level, bool half, int64_t block, int64_t n_in);

// Both return 0, or -1 when memory runs out, or -2 when the index is none of a pattern: then nothing was written.
EXPORT int sparse_ops_product(const ProductCall* call);
EXPORT int sparse_ops_gradient(const GradientCall* call);

// These return 0, or -1 when memory runs out.
EXPORT int sparse_ops_attention(const AttentionCall* call);
EXPORT int sparse_ops_half_round(const HalfRoundCall* call);
EXPORT int sparse_ops_half_products(const HalfProductsCall* call);
EXPORT int sparse_ops_add_norm(const AddNormCall* call);
EXPORT int sparse_ops_add_norm_gradient(const AddNormGradientCall* call);
EXPORT int sparse_ops_cross_entropy(const CrossEntropyCall* call);

}  // extern "C"
