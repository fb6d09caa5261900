// Eq. 3 of x / phi and its gradients, each in one pass over x (pixels, channels); phi is one factor per channel.
#include "common.h"

extern "C" void divided_fake_quantize(const float* x, const float* phi, float scale, float zero_point, long pixels,
                                      long channels, float lowest, float highest, long threads, float* found) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && pixels * channels > ALONE)
    for (long pixel = 0; pixel < pixels; ++pixel) {
        const float* from = x + pixel * channels;
        float* to = found + pixel * channels;
#pragma omp simd
        for (long c = 0; c < channels; ++c) {
            const float steps = (from[c] / phi[c] - zero_point) / scale;
            to[c] = __builtin_rintf(clamped(steps, lowest, highest)) * scale + zero_point;
        }
    }
}

// With respect to x, phi, and (2,) scale and zero_point; `reach` as in primitives.fake_quantize.
extern "C" void divided_fake_quantize_gradients(const float* gradient, const float* x, const float* phi, float scale,
                                                float zero_point, long pixels, long channels, float lowest,
                                                float highest, long threads, float reach, float* grad_x,
                                                float* grad_phi, float* grad_range) {
    const long step = 1 + BLOCK / channels, jobs = (pixels + step - 1) / step;
    std::vector<double> to_phi(jobs * channels), to_range(jobs * 2);
    double *const phi_by_job = to_phi.data(), *const range_by_job = to_range.data();
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && pixels * channels > ALONE)
    for (long job = 0; job < jobs; ++job) {
        std::vector<float> sums(channels);
        float* const sum = sums.data();
        float to_scale = 0, to_zero_point = 0;
        for (long pixel = job * step; pixel < std::min(pixels, (job + 1) * step); ++pixel) {
            const float *from = x + pixel * channels, *given = gradient + pixel * channels;
            float* to = grad_x + pixel * channels;
#pragma omp simd reduction(+ : to_scale, to_zero_point)
            for (long c = 0; c < channels; ++c) {
                const float quotient = from[c] / phi[c], steps = (quotient - zero_point) / scale;
                const float code = clamped(steps, lowest, highest);
                const bool inside = steps >= lowest - reach && steps <= highest + reach;
                const float kept = inside ? given[c] : 0.0f, found = kept / phi[c];
                to[c] = found;
                sum[c] -= found * quotient;
                to_scale += (__builtin_rintf(code) - (inside ? steps : 0.0f)) * given[c];
                to_zero_point += given[c] - kept;
            }
        }
        std::copy(sum, sum + channels, phi_by_job + job * channels);
        range_by_job[2 * job] = to_scale;
        range_by_job[2 * job + 1] = to_zero_point;
    }
    add_up(to_phi, channels, grad_phi);
    add_up(to_range, 2, grad_range);
}
