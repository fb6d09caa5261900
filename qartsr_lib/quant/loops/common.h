// What the loops share. They are compiled without fused multiply-add, so that every number has the bits of the same
// operations in PyTorch. Sums are over BLOCK numbers or so in float32, over blocks in float64; their order does not
// depend on the number of threads.
#pragma once

#include <algorithm>
#include <vector>

#include "vectors.h"

constexpr long BLOCK = 2048, ALONE = 16384;  // fewer numbers than the latter are not worth a second thread

inline float clamped(float value, float lowest, float highest) {  // NaN passes through
    return value < lowest ? lowest : value > highest ? highest : value;
}

// The sums over jobs of `width` numbers each.
inline void add_up(const std::vector<double>& by_job, long width, float* found) {
    for (long i = 0; i < width; ++i) {
        double total = 0;
        for (size_t at = i; at < by_job.size(); at += width) total += by_job[at];
        found[i] = total;
    }
}
