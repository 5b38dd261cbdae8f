// How threads share a product: each draws a panel of tokens and a group of block rows until none is left, and knows
// which comes after it.
#pragma once
#include "job.hpp"

namespace SPARSE_OPS_LEVEL {

struct Share {
    const Product& job;
    const int64_t panel, count;
    int64_t mine = 0, coming;
    int64_t index = 0, first = 0, tokens = 0;  // of the panel
    int64_t row = 0, last_row = 0;

    explicit Share(const Product& job)
        : job(job), panel(job.panel), count((job.tokens + panel - 1) / panel * job.n_groups), coming(draw()) {}
    int64_t draw() const { return __atomic_fetch_add(job.next, 1, __ATOMIC_RELAXED); }
    bool next() {
        if (coming >= count) return false;
        mine = coming, coming = draw();
        index = mine / job.n_groups, first = index * panel, tokens = end(first) - first;
        row = job.groups[mine % job.n_groups], last_row = job.groups[mine % job.n_groups + 1];
        return true;
    }
    int64_t end(int64_t from) const { return from + panel < job.tokens ? from + panel : job.tokens; }
    // The tokens [ahead_first(), end(ahead_first())) of the panel after this one; none after the last.
    int64_t ahead_first() const { return coming < count ? coming / job.n_groups * panel : job.tokens; }
};

}  // namespace SPARSE_OPS_LEVEL
