// What the dispatcher hands to the kernels. Plain data, the same in every level; sizes in elements unless said.
#pragma once
#include <cstddef>
#include <cstdint>

// A block in the order in which a kernel visits it.
struct Entry {
    int32_t source;  // block column of W for Y = X W^T, block row for dX = dY W
    int32_t slot;
};

// A 1x1 block, gathered with its value: one cache line holds eight in visiting order.
struct Scalar {
    int32_t source;  // feature within its chunk
    float weight;
};

// Consecutive rows of a chunk that have the same number of 1x1 blocks, so that the inner loop's length is predictable.
struct Run {
    int32_t count;   // blocks in each row
    int32_t n_rows;
};

struct ScalarPlan {
    int64_t chunk;            // features in a chunk
    int64_t n_chunks;
    const int64_t* run_ptr;   // [n_chunks + 1] into runs
    const Run* runs;
    const int32_t* rows;      // rows of all runs, one after the other
    const Scalar* scalars;    // of two rows at a time interleaved, an odd last row alone
};

// Y[T, n_out] = X[T, n_in] W^T (+ bias), or with `transposed` the product with W itself; W [n_out, n_in] as seen here.
struct Product {
    const void* x;
    void* y;
    const float* bias;     // [n_out] or null
    const float* values;   // [nnz, b, b] in slot order
    int64_t tokens, n_in, n_out, block;
    bool transposed;       // a block's values are read as their transpose
    bool half;             // x and y are bfloat16
    const int32_t* ptr;    // [n_out / block + 1] into entries
    const Entry* entries;  // sorted by output block row
    const Entry* end;      // of the entries
    ScalarPlan scalar;     // instead of entries when block == 1
    const int32_t* groups; // [n_groups + 1]: block rows split into parts of about equal work
    int64_t n_groups;
    int64_t* next;         // the shared counter from which threads draw jobs (panel, group)
};

struct Pair {
    int32_t resident;  // feature of the side that is packed once per panel
    int32_t streamed;  // feature within the chunk of the other side
};

// dW at the existing blocks, summed over a range of tokens into `sums`, float32 in visiting order.
struct Gradient {
    const void* resident;  // [T, n_resident]: x or dy, the narrower
    const void* streamed;  // [T, n_streamed]
    int64_t n_resident, n_streamed, block;
    bool half;
    const int32_t* ptr;    // [n_streamed / block + 1] into entries
    const Entry* entries;  // sorted by streamed block; source is the resident block
    const Pair* pairs;     // 1x1: sorted by chunk of the streamed side
    const int64_t* chunk_ptr;  // 1x1: [n_chunks + 1] into pairs
    int64_t chunk, n_chunks;   // 1x1: streamed features in a chunk
    int64_t panel;
};

struct Level {
    int lanes;
    int64_t (*product_panel)(int64_t block);  // tokens in a panel
    int64_t (*gradient_panel)(int64_t block);
    void (*product)(const Product&);                              // draws jobs until none is left
    void (*gradient)(const Gradient&, int64_t first, int64_t last, float* sums);
};

// A workspace that a thread keeps: at least `bytes`, aligned to pages, contents undefined.
char* thread_workspace(size_t bytes);
