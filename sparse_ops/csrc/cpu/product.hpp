// Y = X W^T and dX = dY W with tokens as lanes, of blocks of every size: weights are broadcast scalars. A panel of
// tokens is packed a chunk of features at a time, and all block rows run over it.
#pragma once
#include "gather.hpp"
#include "pack.hpp"
#include "share.hpp"

namespace SPARSE_OPS_LEVEL {

// Outputs of a block that are accumulated at a time; with the vectors of tokens in a panel they fill the registers.
template <int B>
constexpr int kOutputs = W == 16 && B > 4 ? 8 : 4;

template <>
constexpr int kOutputs<1> = 2;  // rows

// Inputs that a multiply-add takes: a pair of bfloat16 numbers is packed, moved and broadcast as one float.
#ifdef SPARSE_OPS_PAIRS
template <class T>
constexpr int kPairs = std::is_same<T, bf16>::value ? 2 : 1;
#else
template <class T>
constexpr int kPairs = 1;
#endif

// What one pass over blocks needs: a chunk's part of a product, for one panel; and what to ask for at every block (of
// 1x1 blocks at every pass), which are `lines` of the next panel: as many at once as a pass needs would hold up the
// multiply-adds, whose own inputs come from L2.
struct Pass {
    const Product& job;
    int64_t chunk;
    const float* panel;
    Ahead& ahead;
    int64_t lines;
};

// Outputs [o, o + R) of a block row start from the sums of the chunks before, or from the bias.
template <int R, int NV, int P>
INLINE void start_sums(V (&acc)[R][NV], const Product& job, int64_t output, const float* sums) {
#pragma GCC unroll 16
    for (int o = 0; o < R; ++o) {
        V bias = job.bias ? broadcast(job.bias[output + o]) : V{};
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[o][v] = sums ? load(sums + o * P + v * W) : bias;
    }
}

// Outputs [first, first + R) of one block row over NV vectors of tokens, to out [B][P]; sums: as `out`, or null.
template <int B, int NV, int P, int PAIRS>
static __attribute__((noinline)) void block_row(const Pass& pass, int64_t row, int first, const float* sums,
                                                float* out) {
    constexpr int R = kOutputs<B>, K = B / PAIRS;
    const Product& job = pass.job;
    V acc[R][NV];
    start_sums<R, NV, P>(acc, job, row * B + first, sums ? sums + first * P : nullptr);
    const RowBlocks blocks = row_blocks(job, pass.chunk, row);
    const float* w = row_weights<B, PAIRS>(job, blocks, first);
    AheadSteps ahead(pass.ahead, pass.lines);
    for (const Entry* e = blocks.begin; e < blocks.end; ++e, w += K * R) {
        const float* x = pass.panel + e->source;
        pin(x), pin(w);
        ahead.some();
#pragma GCC unroll 16
        for (int i = 0; i < K; ++i) {
            V xv[NV];
            load_pinned(x + i * P, xv);
#pragma GCC unroll 16
            for (int o = 0; o < R; ++o) {
                const float* at = w + i * R + o;
                V s = PAIRS == 2 ? broadcast_pair(at) : broadcast(*at);
#pragma GCC unroll 8
                for (int v = 0; v < NV; ++v)
                    PAIRS == 2 ? multiply_add_pairs(acc[o][v], xv[v], s) : multiply_add(acc[o][v], xv[v], s);
            }
        }
    }
#pragma GCC unroll 16
    for (int o = 0; o < R; ++o)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) store(out + (first + o) * P + v * W, acc[o][v]);
    ahead.end(pass.ahead);
}

// A pair of rows of 1x1 blocks, rows[0] and rows[1] (or the last row alone): one alone would wait for its own sums.
// Both have as many entries, in turn, so that one jump is guessed wrong and not one of each row's. first: the row of
// out[0].
template <int ROWS, int NV, int P>
static __attribute__((noinline)) void scalar_rows(const float* panel, const int32_t* rows, int64_t first,
                                                  const Entry* e, const Entry* end, const float* bias,
                                                  const float* sums, float* out) {
    V acc[ROWS][NV];
    int64_t at[ROWS];
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; ++r) {
        at[r] = (rows[r] - first) * P;
        V start = bias ? broadcast(bias[rows[r]]) : V{};
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[r][v] = sums ? load(sums + at[r] + v * W) : start;
    }
    for (; e < end; e += ROWS) {
#pragma GCC unroll 2
        for (int r = 0; r < ROWS; ++r) {
            uint64_t entry;  // as a number: loads are what this loop waits for, and so there is one and not two
            memcpy(&entry, e + r, sizeof(entry));
            pin(entry);
            const float* x = panel + (uint32_t)entry;
            pin(x);
            V w = broadcast_bits((uint32_t)(entry >> 32));
            pin(w);
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) multiply_add(acc[r][v], x + v * W, w);
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(out + at[r] + v * W, acc[r][v]);
}

// Outputs [o, o + kOutputs<B>), less where there are no more than `n`, of the rows that begin at `row`, as do sums and
// out.
template <int B, int NV, int P, class T>
INLINE void run_pass(const Pass& pass, int64_t row, int64_t o, int64_t n, const float* sums, float* out) {
    if constexpr (B > 1) {
        int64_t in_row = o / B * (B * P);
        const float* from = sums ? sums + in_row : nullptr;
        block_row<B, NV, P, kPairs<T>>(pass, row + o / B, (int)(o % B), from, out + in_row);
    } else {
        const Product& job = pass.job;
        pass.ahead.some(pass.lines);
        const int32_t* rows = job.pair_rows + pass.chunk * job.n_rows + row + o;
        const int64_t* ptr = job.pair_ptr + pass.chunk * ((job.n_rows + 1) / 2) + (row + o) / 2;
        const auto run = n > 1 ? scalar_rows<2, NV, P> : scalar_rows<1, NV, P>;
        run(pass.panel, rows, row, job.entries + ptr[0], job.entries + ptr[1], job.bias, sums, out);
    }
}

// Tiles [FIRST, LAST) of kLine outputs, where everything but the addresses is known when this is compiled.
template <int FIRST, int LAST, int P, class T>
INLINE void write_tiles(const float* done, const Target<T>& to) {
    if constexpr (FIRST < LAST) {
        constexpr int ACROSS = kLine / W, TOKEN = FIRST / ACROSS * W, FEATURE = FIRST % ACROSS * W;
        write_tile(done + FEATURE * P + TOKEN, P, to.at(TOKEN, FEATURE));
        write_tiles<FIRST + 1, LAST, P>(done, to);
    }
}

// Passes [N, kLine / R) over kLine outputs and a whole panel, while the results of the outputs before are written in as
// many parts: no branch between the passes depends on data.
template <int B, int NV, int N, class T>
INLINE void whole_line(const Pass& pass, int64_t row, const float* sums, float* out, const Target<T>& next,
                       const float* done, const Target<T>& to) {
    constexpr int P = NV * W, R = kOutputs<B>, PASSES = kLine / R, TILES = kLine / W * NV;
    constexpr int A_PASS = (TILES + PASSES - 1) / PASSES, FIRST = N * A_PASS;
    constexpr int LAST = FIRST + A_PASS < TILES ? FIRST + A_PASS : TILES;
    if constexpr (N < PASSES) {
        next.claim(P * N / PASSES, P * (N + 1) / PASSES);
        write_tiles<FIRST, LAST, P>(done, to);
        run_pass<B, NV, P, T>(pass, row, N * R, R, sums, out);
        whole_line<B, NV, N + 1>(pass, row, sums, out, next, done, to);
    }
}

// The last chunk of a panel: results go to memory.
template <int B, int NV, class T>
static void last_chunk(const Pass& pass, int64_t tokens, int64_t row, int64_t last_row, const float* sums, float* stage,
                       const Target<T>& to) {
    constexpr int P = NV * W, R = kOutputs<B>, PASSES = kLine / R;
    Results<T> done;
    for (int turn = 0; row < last_row; turn = 1 - turn) {
        float* out = stage + turn * (kLine * P);
        int64_t last = smaller(row + kLine / B, last_row);
        Results<T> next = {out, to.at(0, row * B), P, tokens, (last - row) * B};
        const float* from = sums ? sums + row * (B * P) : nullptr;
        if (next.whole_lines() && done.whole_lines()) {
            whole_line<B, NV, 0>(pass, row, from, out, next.to, done.in, done.to);
        } else {
            for (int64_t o = 0, n = 0; o < next.features; o += R, ++n) {
                next.to.claim(tokens * n / PASSES, tokens * (n + 1) / PASSES);
                run_pass<B, NV, P, T>(pass, row, o, next.features - o, from, out);
            }
            done.all();
        }
        done = next;
        row = last;
    }
    done.all();
}

// Block rows [row, last_row) of one panel: x and `to` at its first token; `panel` holds a chunk, `sums` all outputs.
template <int B, int NV, class T>
static void product_panel(const Product& job, const T* x, const Target<T>& to, int64_t tokens, int64_t row,
                          int64_t last_row, Ahead ahead, bool packed, float* panel, float* sums, float* stage) {
    constexpr int P = NV * W, R = kOutputs<B>;
    const int64_t passes = (last_row - row) * B / R * job.n_chunks;
    const int64_t blocks = job.chunk_ptr[job.n_chunks * job.n_rows + last_row - 1] - job.chunk_ptr[row];
    const int64_t lines = ahead.lines() / ((B > 1 ? blocks * (B / R) : passes) + 1) + 1;
    for (int64_t c = 0; c < job.n_chunks; ++c) {
        if (!packed) {
            constexpr int64_t PAIRS = kPairs<T>;
            using Packed = typename std::conditional<PAIRS == 2, float, T>::type;
            int64_t first = c * job.chunk, end = smaller(first + job.chunk, job.n_in);
            pack<1>((const Packed*)x, job.n_in / PAIRS, first / PAIRS, end / PAIRS, tokens, P, panel);
        }
        Pass pass{job, c, panel, ahead, lines};
        if (c + 1 == job.n_chunks) {
            last_chunk<B, NV, T>(pass, tokens, row, last_row, c > 0 ? sums : nullptr, stage, to);
            return;
        }
        for (int64_t r = row; r < last_row; r += kLine / B) {
            int64_t outputs = smaller(kLine, (last_row - r) * B), at = r * (B * P);
            for (int64_t o = 0; o < outputs; o += R)
                run_pass<B, NV, P, T>(pass, r, o, outputs - o, c > 0 ? sums + at : nullptr, sums + at);
        }
    }
}

template <int B, int NV, class T>
static void product_blocks(const Product& job) {
    constexpr int P = NV * W;
    int64_t chunk = round_up(job.chunk, W), n_sums = job.n_chunks > 1 ? job.n_out : 0;
    float* stage = (float*)thread_workspace((chunk + 1 + n_sums + 2 * kLine) * P * sizeof(float));
    float *panel = stage + 2 * kLine * P, *nothing = panel + chunk * P, *sums = nothing + P;
    // What a PairOrder's places without a block are multiplied with.
    for (int i = 0; i < P; i += W) store(nothing + i, V{});
    const Target<T> all(job);
    int64_t last_panel = -1;
    Share share(job);
    while (share.next()) {
        const int64_t first = share.first, ahead_first = share.ahead_first();
        Ahead ahead;
        ahead.set((const T*)job.x, job.n_in, ahead_first, share.end(ahead_first));
        if (all.factor && job.n_groups == 1) ahead.then(all.factor, all.stride, ahead_first, share.end(ahead_first));
        bool packed = job.n_chunks == 1 && share.index == last_panel;
        product_panel<B, NV, T>(job, (const T*)job.x + first * job.n_in, all.at(first, 0), share.tokens, share.row,
                                share.last_row, ahead, packed, panel, sums, stage);
        last_panel = share.index;
    }
    past_caches_done();
}

// NV vectors of tokens, and a chunk of them of so many KB.
template <int B, int NV, class T>
constexpr ProductVariant tokens_as_lanes(const char* name, int64_t longest, int64_t chunk) {
    constexpr int64_t P = NV * W;
    return {name,
            longest,
            P,
            (chunk << 10) / (P * 4) / kLine * kLine,
            P,
            gather<B, kOutputs<B>, kPairs<T>, T>,
            product_blocks<B, NV, T>};
}

}  // namespace SPARSE_OPS_LEVEL
