// Eq. 3 and its gradients, each in one pass over memory.
#include "common.h"

namespace {

template <bool OFFSET>
inline float steps_of(float x, float scale, float zero_point) {
    return (OFFSET ? x - zero_point : x) / scale;
}

template <bool OFFSET>
void quantize(const float* x, float* found, long length, float scale, float zero_point, float lowest, float highest) {
#pragma omp simd
    for (long i = 0; i < length; ++i) {
        const float code = __builtin_rintf(clamped(steps_of<OFFSET>(x[i], scale, zero_point), lowest, highest));
        found[i] = OFFSET ? code * scale + zero_point : code * scale;
    }
}

struct Sums {
    double scale, zero_point;
};

template <bool OFFSET>
Sums differentiate(const float* gradient, const float* x, float* grad_x, long length, float scale, float zero_point,
                   float lowest, float highest, float reach) {
    float to_scale = 0, to_zero_point = 0;
#pragma omp simd reduction(+ : to_scale, to_zero_point)
    for (long i = 0; i < length; ++i) {
        const float steps = steps_of<OFFSET>(x[i], scale, zero_point), code = clamped(steps, lowest, highest);
        const bool inside = steps >= lowest - reach && steps <= highest + reach;
        const float kept = inside ? gradient[i] : 0.0f;
        grad_x[i] = kept;
        to_scale += (__builtin_rintf(code) - (inside ? steps : 0.0f)) * gradient[i];
        to_zero_point += gradient[i] - kept;
    }
    return {to_scale, to_zero_point};
}

// Calls work(job, row, from, length) for every stretch of a block in (rows, inner).
template <class Work>
void by_blocks(long rows, long inner, long threads, Work work) {
    const long blocks = (inner + BLOCK - 1) / BLOCK, jobs = rows * blocks;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows * inner > ALONE)
    for (long job = 0; job < jobs; ++job) {
        const long row = job / blocks, begin = job % blocks * BLOCK;
        work(job, row, row * inner + begin, inner - begin < BLOCK ? inner - begin : BLOCK);
    }
}

}  // namespace

// x (rows, inner) with one scale per row; zero_point may be null.
extern "C" void fake_quantize(const float* x, const float* scale, const float* zero_point, long rows, long inner,
                              float lowest, float highest, long threads, float* found) {
    by_blocks(rows, inner, threads, [=](long, long row, long from, long length) {
        if (zero_point) quantize<true>(x + from, found + from, length, scale[row], zero_point[row], lowest, highest);
        else quantize<false>(x + from, found + from, length, scale[row], 0, lowest, highest);
    });
}

// Of fake_quantize, with respect to x, scale and zero_point (rows,); `reach` as in primitives.fake_quantize.
extern "C" void fake_quantize_gradients(const float* gradient, const float* x, const float* scale,
                                        const float* zero_point, long rows, long inner, float lowest, float highest,
                                        long threads, float reach, float* grad_x, float* grad_scale,
                                        float* grad_zero_point) {
    const long blocks = (inner + BLOCK - 1) / BLOCK;
    std::vector<Sums> sums(rows * blocks);
    Sums* const by_job = sums.data();
    by_blocks(rows, inner, threads, [=](long job, long row, long from, long length) {
        const auto differentiated = zero_point ? differentiate<true> : differentiate<false>;
        by_job[job] = differentiated(gradient + from, x + from, grad_x + from, length, scale[row],
                                     zero_point ? zero_point[row] : 0, lowest, highest, reach);
    });
    for (long row = 0; row < rows; ++row) {
        Sums total{0, 0};
        for (long block = row * blocks; block < (row + 1) * blocks; ++block) {
            total.scale += by_job[block].scale;
            total.zero_point += by_job[block].zero_point;
        }
        grad_scale[row] = total.scale;
        if (zero_point) grad_zero_point[row] = total.zero_point;
    }
}
