// Attention forward and backward, a head of a sequence at a time. What its products stream is packed into panels that
// stay in L2; queries go by blocks, whose scores, all keys wide, stay in L1 or near it.
//
// With scores s = q k^T / sqrt(width), p = softmax(s), the mask m of dropout (0 or its scale) and the result
// o = (m p) v, the gradients from do are: dv = (m p)^T do, dp = m (do v^T), ds = p (dp - sum of p dp over the row),
// dq = ds k / sqrt(width), dk = ds^T q / sqrt(width). Exponentials are powers of two: log2 e is part of packed keys.
#pragma once
#include "job.hpp"
#include "power.hpp"
#include "random.hpp"
#include "tile.hpp"

namespace SPARSE_OPS_LEVEL {

constexpr int64_t kQueries = 48;  // in a block

INLINE int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

template <int S, size_t... J>
INLINE V sides_changed(V v, std::index_sequence<J...>) {
    return SHUFFLE2(v, v, ((int)J ^ S)...);
}
template <int S = W / 2>
INLINE float largest(V v) {
    const V other = sides_changed<S>(v, Lanes{});
    v = other > v ? other : v;
    if constexpr (S == 1)
        return v[0];
    else
        return largest<S / 2>(v);
}
template <int S = W / 2>
INLINE float total(V v) {
    v += sides_changed<S>(v, Lanes{});
    if constexpr (S == 1)
        return v[0];
    else
        return total<S / 2>(v);
}

// Rows of a head in memory, `stride` apart, and the [rows][width] and [panels][rows][kTileLanes] they are packed into.
struct Rows {
    const float* data;
    int64_t stride;
    int64_t count;
    int64_t width;
};

static void pack_rows(const Rows& from, float* to) {
    for (int64_t r = 0; r < from.count; ++r)
        for (int64_t d = 0; d < from.width; d += W)
            store(to + r * from.width + d, load(from.data + r * from.stride + d));
}

static void pack_panels(const Rows& from, float* to) {
    for (int64_t r = 0; r < from.count; ++r)
        for (int64_t d = 0; d < from.width; d += W)
            store(to + (d / kTileLanes * from.count + r) * kTileLanes + d % kTileLanes,
                  load(from.data + r * from.stride + d));
}

// The transpose, times `factor`, in panels [panels][width][kTileLanes]; zeros follow the last row in its vector.
static void pack_transposed(const Rows& from, float factor, float* to) {
    for (int64_t r = 0; r < from.count; r += W) {
        float* panel = to + r / kTileLanes * from.width * kTileLanes + r % kTileLanes;
        for (int64_t d = 0; d < from.width; d += W) {
            const float* at = from.data + r * from.stride + d;
            V a[W];
            if (from.count - r >= W) {
                load_transposed<1>(at, from.stride, a);
            } else {
                for (int i = 0; i < W; ++i) a[i] = i < from.count - r ? load(at + i * from.stride) : V{};
                transpose<1>(a);
            }
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) store(panel + (d + i) * kTileLanes, a[i] * factor);
        }
    }
}

// Back to memory, each row times factor[row * step].
static void unpack(const float* from, const float* factor, int64_t step, int64_t count, int64_t width, float* to,
                   int64_t stride, bool past_caches) {
    for (int64_t r = 0; r < count; ++r)
        for (int64_t d = 0; d < width; d += W)
            put(to + r * stride + d, load(from + r * width + d) * factor[r * step], past_caches);
}

// What the coming head will read, asked for while this one computes: a few rows before each of its tiles, as memory
// does not keep up with more at once. A row is a token's part, of queries, keys, values or, backward, gradients.
struct HeadAhead {
    const float* part[4];  // where the token's parts are
    int64_t step[4];       // from a token to the next
    int64_t parts, width;  // of these there are; floats of each
    int64_t rows_a_tile;
    int64_t tokens_left = 0, next_part = 0;

    explicit HeadAhead(const Attention& job) : parts(job.dout ? 4 : 3), width(job.width) {
        const int64_t tiles_down = (job.length + kTileRows - 1) / kTileRows, blocks = (job.length - 1) / kQueries + 1;
        const int64_t keys = (job.length - 1) / kTileLanes + 1, wide = (job.width - 1) / kTileLanes + 1;
        const int64_t tiles = tiles_down * (job.dout ? 2 * keys + wide + 2 * blocks * wide : keys + wide);
        rows_a_tile = tiles > 0 ? (parts * job.length - 1) / tiles + 1 : 0;
        for (int64_t i = 0; i < 4; ++i) step[i] = (i < 3 ? 3 : 1) * job.heads * job.width;
    }
    void begin(const Attention& job, const float* qkv, const float* dout) {
        tokens_left = job.length, next_part = 0;
        for (int64_t i = 0; i < 3; ++i) part[i] = qkv + i * job.heads * job.width;
        part[3] = dout;
    }
    void some() {
        for (int64_t n = rows_a_tile; n > 0 && tokens_left > 0; --n) {
            for (int64_t d = 0; d < width; d += 16) __builtin_prefetch(part[next_part] + d, 0, 2);
            part[next_part] += step[next_part];
            if (++next_part == parts) next_part = 0, --tokens_left;
        }
    }
};

// What a thread needs for a head, and where it is.
struct Head {
    const Attention& job;
    const int64_t row, keys;  // between tokens of qkv, in floats; keys: the length in whole vectors
    const int64_t stride;     // of scores: an odd number of cache lines, which spreads columns over all of L1
    const int64_t block = kQueries + kTileSlack;
    float *mask, *q, *q_panels, *keys_t, *k_panels, *v, *scores;  // v: panels; backward, of the transpose
    float *dout, *dout_panels, *dscores, *dq, *dk, *dv;
    int64_t number = 0, coming;  // this head and the thread's next, among all
    const float* qkv = nullptr;
    HeadAhead ahead;

    explicit Head(const Attention& job)
        : job(job),
          row(3 * job.heads * job.width),
          keys(rounded_up(job.length, W)),
          stride((rounded_up(job.length, 16) / 16 | 1) * 16),
          coming(draw()),
          ahead(job) {
        const int64_t d = rounded_up(job.width, kTileLanes), s = rounded_up(job.length, kTileLanes) + kTileSlack;
        const int64_t sizes[] = {s,         block * d, block * d,      s * d,     s * d, s * d, block * stride,
                                 block * d, block * d, block * stride, block * d, s * d, s * d};
        float** const parts[] = {&mask, &q,           &q_panels, &keys_t, &k_panels, &v, &scores,
                                 &dout, &dout_panels, &dscores,  &dq,     &dk,       &dv};
        constexpr int kParts = sizeof(sizes) / sizeof(sizes[0]);
        int64_t all = 0;
        for (int i = 0; i < kParts; ++i) all += rounded_up(sizes[i], 16) + 16;
        float* at = (float*)thread_workspace(all * sizeof(float));
        for (int i = 0; i < kParts; ++i) *parts[i] = at, at += rounded_up(sizes[i], 16) + 16;
    }

    int64_t draw() const { return __atomic_fetch_add(job.next, 1, __ATOMIC_RELAXED); }
    bool next() {
        const int64_t all = job.batch * job.heads;
        if (coming >= all) return false;
        number = coming, coming = draw();
        if (coming < all)
            ahead.begin(job, job.qkv + place(coming, 0, 3), job.dout ? job.dout + place(coming, 0, 1) : nullptr);
        qkv = job.qkv + place(number, 0, 3);
        const bool* seen = job.seen + number / job.heads * job.length;
        for (int64_t j = 0; j < keys; ++j) mask[j] = j < job.length && seen[j] ? 0 : -__builtin_inff();
        return true;
    }
    // Of a head's token in a tensor of `parts` times as many features as the result.
    int64_t place(int64_t head, int64_t token, int64_t parts) const {
        return ((head / job.heads * job.length + token) * parts * job.heads + head % job.heads) * job.width;
    }
    // part: 0 queries, 1 keys, 2 values.
    Rows rows_of(int part, int64_t first, int64_t count) const {
        return {qkv + part * job.heads * job.width + first * row, row, count, job.width};
    }
    // Which probabilities of a row, of a number among all heads', are dropped in its columns [j, j + W).
    I dropped(int64_t row_number, int64_t j) const {
        const uint32_t place = (uint32_t)(row_number * job.length + j);
        return (I)(random_bits(counted_from(place), job.dropout.key) < job.dropout.threshold);
    }
    float scale() const { return 1 / __builtin_sqrtf((float)job.width); }
};

// The largest score that a row sees; 0 where it sees none.
static float largest_score(const Head& head, const float* scores) {
    V most = broadcast(-__builtin_inff());
    for (int64_t j = 0, keys = head.keys; j < keys; j += W) {
        V s = load(scores + j);
        most = s > most ? s : most;
    }
    const float top = largest(most);
    return top == -__builtin_inff() ? 0 : top;
}

// Scores of rows, of which `row` is the first among all heads', become exponentials, those that are dropped zero; each
// row's largest score and 1 / their sum are kept. Rows wait for nothing of their own: a pass goes over all of them.
template <bool DROPOUT>
static void softmax_rows(const Head& head, int64_t row, int64_t count, float* kept) {
    for (int64_t i = 0; i < count; ++i) kept[2 * i] = largest_score(head, head.scores + i * head.stride);
    for (int64_t i = 0; i < count; ++i) {
        float* const scores = head.scores + i * head.stride;
        const V top = broadcast(kept[2 * i]);
        V sum = {};
        for (int64_t j = 0, keys = head.keys; j < keys; j += W) {
            V p = power_of_two(load(scores + j) - top);
            sum += p;
            if constexpr (DROPOUT) p = (V)((I)p & ~head.dropped(row + i, j));
            store(scores + j, p);
        }
        const float all = total(sum);
        kept[2 * i + 1] = all == 0 ? 0 : 1 / all;
    }
}

template <bool DROPOUT>
static void attention_head(Head& head) {
    const Attention& job = head.job;
    const int64_t length = job.length, width = job.width, lines = job.heads * width;
    const bool past_caches = goes_past_caches(job.out, lines, job.batch * length * lines);
    pack_transposed(head.rows_of(1, 0, length), head.scale() * kLog2e, head.keys_t);
    pack_panels(head.rows_of(2, 0, length), head.v);
    for (int64_t first = 0; first < length; first += kQueries) {
        const int64_t count = length - first < kQueries ? length - first : kQueries;
        pack_rows(head.rows_of(0, first, count), head.q);
        multiply<Lies::kRows>(
            {head.q, width, head.keys_t, head.scores, head.stride, head.mask, 0, count, head.keys / W, width},
            head.ahead);
        float factors[kQueries], *kept = job.rows + (head.number * length + first) * 2;
        softmax_rows<DROPOUT>(head, head.number * length + first, count, kept);
        for (int64_t i = 0; i < count; ++i) factors[i] = kept[2 * i + 1] * job.dropout.scale;
        multiply<Lies::kRows>({head.scores, head.stride, head.v, head.dq, width, nullptr, 0, count, width / W, length},
                              head.ahead);
        unpack(head.dq, factors, 1, count, width, job.out + head.place(head.number, first, 1), lines, past_caches);
    }
}

// Scores of rows become probabilities, those that are dropped zero, and the gradients of probabilities those of scores;
// both without dropout's factor, which comes with the products.
template <bool DROPOUT>
static void gradient_rows(const Head& head, int64_t row, int64_t count, const float* kept) {
    float means[kQueries];
    for (int64_t i = 0; i < count; ++i) {
        float *const scores = head.scores + i * head.stride, *const dscores = head.dscores + i * head.stride;
        const float top = kept[2 * i], inverse = kept[2 * i + 1];
        V sum = {};
        for (int64_t j = 0, keys = head.keys; j < keys; j += W) {
            V p = power_of_two(load(scores + j) - top) * inverse, dp = load(dscores + j);
            if constexpr (DROPOUT) {
                const I dropped = head.dropped(row + i, j);
                dp = (V)((I)dp & ~dropped);
                store(dscores + j, dp);
                store(scores + j, (V)((I)p | (dropped & (I)broadcast(-0.0f))));  // the sign, else never there, marks it
            } else {
                store(scores + j, p);
            }
            sum += p * dp;
        }
        means[i] = total(sum);
    }
    for (int64_t i = 0; i < count; ++i) {
        float *const scores = head.scores + i * head.stride, *const dscores = head.dscores + i * head.stride;
        for (int64_t j = 0, keys = head.keys; j < keys; j += W) {
            V p = load(scores + j);
            if constexpr (DROPOUT) {
                store(scores + j, (V)((I)p & ~((I)p >> 31)));
                p = (V)((I)p & 0x7fffffff);
            }
            store(dscores + j, p * (load(dscores + j) - means[i]));
        }
    }
}

template <bool DROPOUT>
static void gradient_head(Head& head) {
    const Attention& job = head.job;
    const int64_t length = job.length, width = job.width, lines = job.heads * width;
    const float factor = job.dropout.scale * head.scale();
    float* const out = job.out + head.place(head.number, 0, 3);
    const bool past_caches = goes_past_caches(job.out, head.row, job.batch * length * head.row);
    pack_transposed(head.rows_of(1, 0, length), head.scale() * kLog2e, head.keys_t);
    pack_panels(head.rows_of(1, 0, length), head.k_panels);
    pack_transposed(head.rows_of(2, 0, length), 1, head.v);
    for (int64_t first = 0; first < length; first += kQueries) {
        const int64_t count = length - first < kQueries ? length - first : kQueries, vectors = width / W;
        const Rows queries = head.rows_of(0, first, count);
        const Rows dout = {job.dout + head.place(head.number, first, 1), lines, count, width};
        pack_rows(queries, head.q), pack_panels(queries, head.q_panels);
        pack_rows(dout, head.dout), pack_panels(dout, head.dout_panels);
        float *const p = head.scores, *const ds = head.dscores;
        multiply<Lies::kRows>({head.q, width, head.keys_t, p, head.stride, head.mask, 0, count, head.keys / W, width},
                              head.ahead);
        multiply<Lies::kRows>({head.dout, width, head.v, ds, head.stride, nullptr, 0, count, head.keys / W, width},
                              head.ahead);
        const int64_t row = head.number * length + first;
        gradient_rows<DROPOUT>(head, row, count, job.rows + row * 2);
        multiply<Lies::kColumns>({p, head.stride, head.dout_panels, head.dv, width, first > 0 ? head.dv : nullptr,
                                  width, length, vectors, count},
                                 head.ahead);
        multiply<Lies::kColumns>({ds, head.stride, head.q_panels, head.dk, width, first > 0 ? head.dk : nullptr, width,
                                  length, vectors, count},
                                 head.ahead);
        multiply<Lies::kRows>({ds, head.stride, head.k_panels, head.dq, width, nullptr, 0, count, vectors, length},
                              head.ahead);
        unpack(head.dq, &factor, 0, count, width, out + first * head.row, head.row, past_caches);
    }
    unpack(head.dk, &factor, 0, length, width, out + lines, head.row, past_caches);
    unpack(head.dv, &job.dropout.scale, 0, length, width, out + 2 * lines, head.row, past_caches);
}

static void attention(const Attention& job) {
    Head head(job);
    const bool dropout = job.dropout.threshold > 0;
    while (head.next()) {
        if (job.dout)
            dropout ? gradient_head<true>(head) : gradient_head<false>(head);
        else
            dropout ? attention_head<true>(head) : attention_head<false>(head);
    }
    past_caches_done();
}

}  // namespace SPARSE_OPS_LEVEL
