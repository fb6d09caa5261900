// Q(phi (W + change)) and its gradients, each in one pass over a weight of `rows` stretches with a range each. A stretch
// is (.., channels, taps), or with `last` (.., taps, channels); phi is one factor per channel, or null for 1. Bounds are
// given over a power of two, as quant.learned holds them.
#include "common.h"

namespace {

struct Shape {
    long rows, each, channels, taps, last;

    long channel(long at) const { return (last ? at : at / taps) % channels; }

    // phi of every number of a row.
    std::vector<float> spread(const float* phi) const {
        std::vector<float> found(each, 1.0f);
        for (long at = 0; phi && at < each; ++at) found[at] = phi[channel(at)];
        return found;
    }
};

// primitives.affine_qparams
struct Grid {
    float scale, zero_point;

    Grid(float lower_units, float upper_units, float unit, float levels) : zero_point(lower_units * unit) {
        const double exact = ((double)(upper_units * unit) - (double)zero_point) / levels;
        scale = exact < SMALLEST ? SMALLEST : exact;
    }
    static constexpr double SMALLEST = 1e-12;  // primitives.SCALE_FLOOR
};

}  // namespace

extern "C" void folded(const float* residual, const float* phi, const float* lower, const float* upper,
                       const float* unit, const long* sizes, float levels, long threads, float* found) {
    const auto& shape = *(const Shape*)sizes;
    const long rows = shape.rows, each = shape.each;
    const auto factors = shape.spread(phi);
    const float* const factor = factors.data();
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows * each > ALONE)
    for (long row = 0; row < rows; ++row) {
        const Grid grid(lower[row], upper[row], unit[row], levels);
        const float *from = residual + row * each, scale = grid.scale, zero_point = grid.zero_point;
        float* to = found + row * each;
#pragma omp simd
        for (long k = 0; k < each; ++k) {
            const float steps = (factor[k] * from[k] - zero_point) / scale;
            to[k] = __builtin_rintf(clamped(steps, 0.0f, levels)) * scale + zero_point;
        }
    }
}

// With respect to W or change, log phi (null without phi), and the bounds; `reach` as in primitives.fake_quantize.
extern "C" void folded_gradients(const float* gradient, const float* residual, const float* phi, const float* lower,
                                 const float* upper, const float* unit, const long* sizes, float levels, float reach,
                                 long threads, float* grad_residual, float* grad_log_phi, float* grad_lower,
                                 float* grad_upper) {
    const auto& shape = *(const Shape*)sizes;
    const long rows = shape.rows, each = shape.each, channels = shape.channels;
    const long step = 16 + BLOCK / each, jobs = (rows + step - 1) / step;
    const auto factors = shape.spread(phi);
    const float* const factor = factors.data();
    std::vector<double> to_phi(phi ? jobs * channels : 0);
    double* const by_job = to_phi.data();
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows * each > ALONE)
    for (long job = 0; job < jobs; ++job) {
        std::vector<float> sums(each);
        float* const sum = sums.data();
        for (long row = job * step; row < std::min(rows, (job + 1) * step); ++row) {
            const Grid grid(lower[row], upper[row], unit[row], levels);
            const float scale = grid.scale, zero_point = grid.zero_point;
            double scale_total = 0, zero_point_total = 0;
            for (long begin = 0; begin < each; begin += BLOCK) {
                const long from = row * each + begin, length = std::min(BLOCK, each - begin);
                float to_scale = 0, to_zero_point = 0;
#pragma omp simd reduction(+ : to_scale, to_zero_point)
                for (long k = 0; k < length; ++k) {
                    const float by = factor[begin + k], value = residual[from + k], given = gradient[from + k];
                    const float steps = (by * value - zero_point) / scale, code = clamped(steps, 0.0f, levels);
                    const bool inside = steps >= -reach && steps <= levels + reach;
                    const float kept = inside ? given : 0.0f, through = kept * by;
                    grad_residual[from + k] = through;
                    sum[begin + k] += through * value;
                    to_scale += (__builtin_rintf(code) - (inside ? steps : 0.0f)) * given;
                    to_zero_point += given - kept;
                }
                scale_total += to_scale;
                zero_point_total += to_zero_point;
            }
            const float of_scale = scale_total, of_zero_point = zero_point_total;
            const float of_upper = scale > (float)Grid::SMALLEST ? of_scale / levels : 0.0f;
            grad_lower[row] = (of_zero_point - of_upper) * unit[row];
            grad_upper[row] = of_upper * unit[row];
        }
        for (long at = 0; phi && at < each; ++at) by_job[job * channels + shape.channel(at)] += sums[at];
    }
    if (phi) add_up(to_phi, channels, grad_log_phi);
}
