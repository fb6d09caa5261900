// What comes before an integer product, in one loop over the input: GroupNorm and SiLU where they precede the
// layer, scaling, quantization; the codes' sums over the channels; and L2 x of a low-rank branch. Tensors are (pixels,
// channels).
#include <numeric>
#include <vector>

#include "side.h"

namespace {

struct Task {
    const float *x, *norm_scale, *norm_shift;          // (images, channels), null without a norm
    const float *offset, *phi, *reciprocal;            // (channels,)
    const float *factor, *summand;                     // of a normed input: code = factor * input + summand
    float zero_point, scale, largest;
    uint8_t* codes;
    float* sums;
    Side side;
};

enum Seen { NONE, INPUT, SCALED };  // by L2

// One stretch of `length` numbers (a multiple of LANES); `channel` is where each table holds its numbers.
template <bool NORMED, bool SILU, Seen SEEN>
inline float stretch(const Task& task, const float* const* table, const float* x, long length, uint8_t* codes,
                     float* seen) {
    Floats total = all(0);
    const Floats largest = all(task.largest), zero_point = all(task.zero_point), step = all(task.scale),
                 per_step = all(1.0f / task.scale);
    for (long at = 0; at < length; at += LANES) {
        Floats value = load<Floats>(x + at), code, scaled;
        if (NORMED) {
            value = value * load<Floats>(table[0] + at) + load<Floats>(table[1] + at);
            if (SILU) value = silu(value);
            code = value * load<Floats>(table[5] + at) + load<Floats>(table[6] + at);
            if (SEEN == SCALED) scaled = (value - load<Floats>(table[2] + at)) * load<Floats>(table[4] + at);
        } else {  // with the bits of the float layer
            scaled = divided(value - load<Floats>(table[2] + at), load<Floats>(table[3] + at), load<Floats>(table[4] + at));
            code = divided(scaled - zero_point, step, per_step);
        }
        code = most(least(code, largest), all(0)) + ROUNDER;
        store_bytes(codes + at, bits_of<Bits>(code));
        total += code - ROUNDER;
        if (SEEN != NONE) store(seen + at, as_bfloat16(SEEN == INPUT ? value : scaled));
    }
    return sum(total);
}

template <bool NORMED, bool SILU, Seen SEEN>
void run(const Task& task, long images, long pixels, long channels) {
    const long tile = LANES / std::gcd(LANES, channels), length = tile * channels;
    const long tiles = (pixels + tile - 1) / tile, step = LANES * (1 + 512 / length), jobs = (tiles + step - 1) / step;
#pragma omp parallel for collapse(2) schedule(static) if (images * pixels * channels > 16384)
    for (long image = 0; image < images; ++image)
        for (long job = 0; job < jobs; ++job) {
            const float* given[] = {task.norm_scale + (NORMED ? image * channels : 0),
                                    task.norm_shift + (NORMED ? image * channels : 0),
                                    task.offset, task.phi, task.reciprocal, task.factor, task.summand};
            const float* table[7];
            std::vector<float> repeated;
            for (long i = 0; i < 7; ++i) table[i] = given[i];
            if (tile > 1) {
                repeated.resize(7 * length);
                for (long i = 0; i < 7; ++i) {
                    if (NORMED || i > 1)
                        for (long at = 0; at < length; ++at) repeated[i * length + at] = given[i][at % channels];
                    table[i] = &repeated[i * length];
                }
            }
            std::vector<float> last(tile > 1 ? length : 0);
            std::vector<uint8_t> last_codes(last.size());
            std::vector<float> seen(SEEN == NONE ? 0 : LANES * length), turned(SEEN == NONE ? 0 : task.side.room());
            const long end = (job + 1) * step < tiles ? (job + 1) * step : tiles;
            for (long t = job * step; t < end; ++t) {
                const long pixel = image * pixels + t * tile, left = pixels - t * tile, from = pixel * channels;
                const bool whole = left >= tile;
                const float* x = task.x + from;
                uint8_t* codes = whole ? task.codes + from : last_codes.data();
                if (!whole) {
                    std::memcpy(last.data(), x, 4 * left * channels);
                    x = last.data();
                }
                const float total = stretch<NORMED, SILU, SEEN>(task, table, x, length, codes, &seen[t % LANES * length]);
                if (tile == 1) task.sums[pixel] = total;
                for (long p = 0; tile > 1 && p < (whole ? tile : left); ++p)
                    task.sums[pixel + p] = std::accumulate(codes + p * channels, codes + (p + 1) * channels, 0);
                if (!whole) std::memcpy(task.codes + from, codes, left * channels);
                if (SEEN == NONE || (t % LANES < LANES - 1 && t + 1 < end)) continue;
                const long first = (t - t % LANES) * tile, next = whole ? (t + 1) * tile : pixels;
                task.side.multiply(seen.data(), image * pixels + first, next - first, turned.data());
            }
        }
}

template <bool NORMED, bool SILU>
void run(const Task& task, long seen, long images, long pixels, long channels) {
    if (seen == NONE) run<NORMED, SILU, NONE>(task, images, pixels, channels);
    if (seen == INPUT) run<NORMED, SILU, INPUT>(task, images, pixels, channels);
    if (seen == SCALED) run<NORMED, SILU, SCALED>(task, images, pixels, channels);
}

}  // namespace

extern "C" void encode(const float* x, const float* norm_scale, const float* norm_shift, long with_silu,
                       const float* offset, const float* phi, const float* reciprocal, const float* factor,
                       const float* summand, float zero_point, float scale, float largest, long seen,
                       const float* rows, long many, long images, long pixels, long channels, uint8_t* codes,
                       float* sums, uint16_t* planes) {
    const Task task{x, norm_scale, norm_shift, offset, phi, reciprocal, factor, summand, zero_point, scale, largest,
                    codes, sums, Side{rows, many, channels, images * pixels, planes}};
    if (!norm_scale) run<false, false>(task, seen, images, pixels, channels);
    else if (with_silu) run<true, true>(task, seen, images, pixels, channels);
    else run<true, false>(task, seen, images, pixels, channels);
}
