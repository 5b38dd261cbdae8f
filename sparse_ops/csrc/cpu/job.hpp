// What the dispatcher (api.cpp) hands to the kernels: plain data, the same in every level.
//
// The words
//   block row   `block` outputs that follow each other, and the blocks of W that add to them
//   slot        where a block's values lie in `values`; slots stand in no order of positions in W
//   transposed  dX = dY W is Y = X W^T with W in place of W^T: its block rows are the block columns of W, and
//               blocks are transposed as their weights are gathered; all else is the same
//   lanes       the floats of a vector, which one instruction multiplies: 16, 8 or 4, by level (vec.hpp)
//   panel       a few tokens of an activation, in a product 4 to 64; all blocks are done for these before the next ones
//               are begun, so that what a panel needs stays in cache
//   chunk       the features of a panel that are packed at a time, where all would be more than the cache holds
//   group       a share of the block rows: all of them, unless panels are too few to keep the threads busy
//
// A product, from call to result
//   1. plan.cpp lists the blocks as entries in the order of their visits: by block row, in a row by input. An entry is
//      8 bytes: where the block's inputs begin in a panel, and its slot.
//   2. gather.hpp copies the weights of the blocks into the order of the visits; a 1x1 block's is in its entry.
//   3. Each thread draws jobs, a panel and a group, until none is left (share.hpp). It packs a chunk of the panel, the
//      tokens of a feature side by side (pack.hpp), and runs over the blocks of the group (product.hpp). Lanes are
//      tokens: a weight is multiplied with all tokens of the panel. The sums of a few outputs stay in registers; they
//      begin as the bias, or as what the chunks before came to.
//   4. With the last chunk the sums, or their GELU, are turned into rows and written to Y.
// So 4096 tokens of 768 features and 8x8 blocks are, in AVX2, 171 panels of 24 tokens in one chunk, which is 72 KB.
// With outputs as lanes, which 16x16 blocks may have (product_rows.hpp), results are rows already, and there is one
// chunk.
//
// Variants
//   A product can be carried out in several ways (ProductVariant, GradientVariant), which processors find fast or slow.
//   All give the same bits, so that which one runs, and when, needs to be kept by nobody: an output of Y or dX is its
//   bias and then the products of its inputs, in ascending order, each added by a multiply-add of float32; a sum of dW
//   is the sums over 48 tokens of the thread's own (1x1: kDotVectors vectors of them), one after the other. What a
//   variant may choose is which of them are made side by side, where they wait, and how inputs come.
//
// A gradient dW = dY^T X at the blocks (gradient.hpp)
//   The narrower of X and dY is the resident side: a panel of it is packed whole and stays in cache, while the other,
//   the streamed side, passes by, sixteen features or, of 1x1 blocks, a chunk at a time. A vector of a block's resident
//   features is multiplied with one streamed feature; of 1x1 blocks, a vector of tokens of the one side with one of the
//   other. Every thread takes tokens of its own and keeps sums of all blocks in float32, in the order in which it makes
//   them; scatter.hpp adds the threads' sums and puts them into slots.
#pragma once
#include <cstddef>
#include <cstdint>

#include "api.hpp"

// A block of a product.
struct Entry {
    int32_t source;  // where its inputs begin, in floats: in a packed chunk, or in a row of X where lanes are outputs
    union {
        int32_t slot;
        float weight;  // of a 1x1 block, gathered: one cache line holds eight
    };
};
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "an entry that is read as one number has its source below");

struct Product;

// A way to carry out Y and dX with blocks of a size, of a dtype, at a level.
struct ProductVariant {
    const char* name;
    int64_t longest;  // inputs of a token up to which it is taken where none has been chosen; of several the first
    int64_t panel;    // tokens in a panel
    int64_t chunk;    // features in a chunk, at most; 0: of all there are
    int64_t spacing;  // floats from an input to the next as a panel has them: `panel`, or 1 in rows of X
    void (*gather)(const Product&, int64_t first, int64_t last);  // the weights of block rows [first, last)
    void (*run)(const Product&);                                  // draws jobs until none is left
};

// A call, and how it is carried out. Its blocks are [n_out / block] rows of the grid of W, or of its transpose.
struct Product : ProductCall {
    int64_t n_rows;    // block rows: n_out / block
    int64_t panel;     // tokens in a panel
    int64_t chunk;     // features in a chunk, a multiple of 16; the last may have fewer
    int64_t n_chunks;  // of n_in features
    // The blocks' weights in the order of the visits: for every block row and every chunk of it, a few outputs of all
    // blocks as [block][input][outputs], then the next few outputs. float32; in a level that takes pairs bfloat16, as
    // [block][input / 2][outputs][2]. Not of 1x1 blocks.
    float* weights;
    // [nnz] blocks by block row, then by input; and a few more, which prefetches may look at. Of 1x1 blocks see below.
    const Entry* entries;
    // [n_chunks + 1][n_rows]: where each row's entries begin in each chunk, and where they end after the last.
    const int32_t* chunk_ptr;
    // 1x1 blocks go two rows at a time; the rows of a pair have as many entries, which stand in turn (PairOrder).
    // Every 16 are ordered by their number of blocks in the chunk, and two of them are a pair.
    const int32_t* pair_rows;  // [n_chunks][n_rows]
    const int64_t* pair_ptr;   // [n_chunks * pairs + 1]: where each pair's entries begin; the last row may be alone
    const int32_t* groups;     // [n_groups + 1]: where each group's block rows begin; groups are about equal work
    int64_t n_groups;          // for each panel
    int64_t* next;             // a counter that the threads share, from which they draw jobs: panel * n_groups + group
};

// What meets the streamed side in one vector of dW: resident features of a block, as many as fit; or of two blocks of a
// row, where a block fills half a vector (the same twice, where a row has an odd number).
struct Unit {
    int32_t low;   // where the inputs of the vector's lower half, or of all of it, begin in a panel, in floats
    int32_t high;  // the same of the upper half
};

// Some 1x1 blocks of one resident feature, at most kDots; where there are fewer, the last stands again.
constexpr int kDots = 8;
struct DotGroup {
    int32_t resident;         // where the resident feature begins in its panel, in floats
    int32_t streamed[kDots];  // where the streamed ones begin in their chunk, in floats
};

// A call, and how it is carried out.
struct Gradient : GradientCall {
    const void* resident;  // [tokens, n_resident]: x or dy, the narrower
    const void* streamed;  // [tokens, n_streamed]: the other
    int64_t n_resident;    // features
    int64_t n_streamed;    // features
    int64_t panel;         // tokens in a panel
    // Blocks of 4 and more. Sums are [unit][streamed feature of its blocks][lanes], or [block] in place of [lanes]
    // where a vector has more lanes than two blocks have features.
    const Unit* units;        // by streamed block, then by resident feature
    const int32_t* unit_ptr;  // [n_streamed / block + 1]: where each streamed block's units begin
    // 1x1 blocks. Sums are [group][kDots].
    const DotGroup* dots;      // by chunk of the streamed side, then by resident feature
    const int64_t* chunk_ptr;  // [n_chunks + 1]: where each chunk's groups begin
    int64_t chunk;             // streamed features in a chunk; the last may have fewer
    int64_t n_chunks;          // of n_streamed features
};

// A call, of whose heads (sequence * heads + head) threads draw one after another from `next`.
struct Attention : AttentionCall {
    int64_t* next;
};

// What is compiled once for each instruction level (level.cpp).
struct Level {
    int lanes;
    int pairs;  // inputs that a multiply-add takes at a time: 2 in a level of AVX512_BF16, which only has products
    // Variant `number` of products with such blocks, from 0 on; null: there are no more.
    const ProductVariant* (*product)(int64_t block, bool half, int number);
    int64_t (*gradient_panel)(int64_t block);  // tokens over which a sum of dW is made
    // Tokens [first, last) of a gradient, added to `sums`; dy's sum over them to bias [n_out] unless that is null.
    void (*gradient)(const Gradient&, int64_t first, int64_t last, float* sums, float* bias);
    void (*attention)(const Attention&);                                    // draws heads until none is left
    int64_t half_width;                                                     // columns in a panel of halves' products
    void (*half_round)(const HalfRoundCall&, int64_t first, int64_t last);  // elements [first, last)
    void (*half_products)(const HalfProductsCall&, int64_t part);           // one panel of one job
    void (*add_norm)(const AddNormCall&, int64_t first, int64_t last);      // tokens [first, last)
    // Tokens [first, last); the gradients of weight and bias are added to dweight and dbias [features].
    void (*add_norm_gradient)(const AddNormGradientCall&, int64_t first, int64_t last, float* dweight, float* dbias);
    // Words [first, last), to the largest scores and sums of exponentials of these alone, [tokens] each.
    void (*cross_entropy)(const CrossEntropyCall&, int64_t first, int64_t last, float* largest, float* sums);
    void (*cross_entropy_gradient)(const CrossEntropyCall&, int64_t first, int64_t last);  // words [first, last)
};

// A workspace that a thread keeps: at least `bytes`, aligned to pages, contents undefined.
char* thread_workspace(size_t bytes);
