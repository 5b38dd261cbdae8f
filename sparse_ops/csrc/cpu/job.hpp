// What the dispatcher hands to the kernels. Plain data, the same in every level; sizes in elements unless said.
#pragma once
#include <cstddef>
#include <cstdint>

// A block of a product, in the order in which it is visited: by output block row, then by input.
struct Entry {
    int32_t source;  // where its inputs begin in a chunk of a panel, in floats
    union {
        int32_t slot;
        float weight;  // of a 1x1 block, gathered: one cache line holds eight
    };
};

// Blocks that may have outputs as lanes in Y and dX, a cache line of them; where a level takes pairs, none. Others have
// tokens. Where rows are longer, those of a few tokens throw each other and the weights out of the cache.
constexpr int64_t kOutputLanes = 16, kLongestRow = 2048;

// Y[T, n_out] = X[T, n_in] W^T (+ bias), with W [n_out, n_in].
struct Product {
    const void* x;
    void* y;
    void* slope;         // with gelu: its derivative, as y; or null
    bool gelu;           // y is the GELU of the product
    const float* bias;   // [n_out] or null
    const void* values;  // [slot][output][input], of x's type, or with `transposed` [slot][input][output]
    bool transposed;
    // The same in the order of the visits: of every row's blocks in a chunk a few outputs [block][input][outputs] (of a
    // level that takes pairs [block][input / 2][outputs][2], bfloat16), then the next few. Not of 1x1 blocks.
    float* weights;
    int64_t tokens, n_in, n_out, block, n_rows;  // n_rows = n_out / block
    bool half;                                   // x and y are bfloat16
    bool lanes_are_outputs;
    int64_t panel;             // tokens at a time
    int64_t chunk, n_chunks;   // input features packed at a time
    const int32_t* chunk_ptr;  // [n_chunks + 1][n_rows] into entries: where a row's blocks in a chunk begin
    const Entry* entries;
    const int32_t* order;   // [n_rows] for 1x1 blocks: every 16 rows by their number of blocks, so that pairs are alike
    const int32_t* groups;  // [n_groups + 1]: block rows split into parts of about equal work
    int64_t n_groups;
    int64_t* next;  // the shared counter from which threads draw jobs (panel, group)
};

// Some 1x1 blocks of one resident feature, at most kDots; where there are fewer, the last stands again. Places are in
// floats: of the resident feature in its panel, of the streamed ones in their chunk.
constexpr int kDots = 8;
struct DotGroup {
    int32_t resident;
    int32_t streamed[kDots];
};

// What meets the streamed side in one vector of dW: resident features of a block, as many as fit; or of two blocks of a
// row, where a block fills half a vector (the same twice, where a row has an odd number).
struct Unit {
    int32_t low, high;  // where their inputs begin in a panel, in floats
};

// dW at the existing blocks, summed over a range of tokens into `sums`, float32.
struct Gradient {
    const void* resident;  // [T, n_resident]: x or dy, the narrower
    const void* streamed;  // [T, n_streamed]
    const void* dy;        // [T, n_out], one of the two
    int64_t n_out;
    int64_t n_resident, n_streamed, block;
    bool half;
    int64_t panel;
    // Blocks of 4 and more. Sums are [unit][streamed feature][lanes], or [block] in place of lanes where those are more
    // than two blocks.
    const int32_t* unit_ptr;  // [n_streamed / block + 1] into units
    const Unit* units;
    // 1x1: sums are [group][kDots].
    const DotGroup* dots;      // sorted by chunk of the streamed side
    const int64_t* chunk_ptr;  // [n_chunks + 1] into dots
    int64_t chunk, n_chunks;   // streamed features in a chunk
};

struct Level {
    int lanes;
    int pairs;  // inputs that a multiply-add takes at a time: 2 in a level of AVX512_BF16, which only has `product`
    int64_t (*product_panel)(int64_t block, bool lanes_are_outputs);  // tokens in a panel
    int64_t (*product_chunk)(int64_t block);                          // input features packed at a time, at most
    int64_t (*gradient_panel)(int64_t block);
    void (*gather)(const Product&, int64_t first, int64_t last);  // the weights of block rows [first, last)
    void (*product)(const Product&);                              // draws jobs until none is left
    // Tokens [first, last) of a gradient, added to `sums`; dy's sum over them to bias [n_out] unless that is null.
    void (*gradient)(const Gradient&, int64_t first, int64_t last, float* sums, float* bias);
};

// A workspace that a thread keeps: at least `bytes`, aligned to pages, contents undefined.
char* thread_workspace(size_t bytes);
