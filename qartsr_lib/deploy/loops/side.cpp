// L2 x in bfloat16. Products of two bfloat16 numbers are exact in float32, and each sum runs over the channels in their
// order, so that its bits are the same with and without fused multiply-add, whatever the vectors' length.
#include <vector>

#include "vectors.h"

namespace {

#ifdef __AVX512F__
constexpr long ROWS = 8;  // sums held in registers at a time
#else
constexpr long ROWS = 4;
#endif

template <long MANY>
void sums_of(const float* x, const float* rows, long channels, uint16_t* to, long pixels, long count) {
    Floats total[MANY];
    for (long row = 0; row < MANY; ++row) total[row] = all(0);
    for (long c = 0; c < channels; ++c) {
        const Floats value = load<Floats>(x + c * LANES);
#pragma GCC unroll 8
        for (long row = 0; row < MANY; ++row) total[row] += value * rows[row * channels + c];
    }
    uint16_t rounded[LANES];
    for (long row = 0; row < MANY; ++row) {
        store_bfloat16(rounded, total[row]);
        std::memcpy(to + row * pixels, rounded, 2 * count);
    }
}

}  // namespace

// half (pixels, channels) bfloat16 and rows (many, channels) float32 -> (many, pixels) bfloat16.
extern "C" void side(const uint16_t* half, const float* rows, long many, long pixels, long channels, uint16_t* to) {
#pragma omp parallel if (pixels * channels > 16384)
    {
        std::vector<float> x(channels * LANES);
#pragma omp for schedule(static)
        for (long at = 0; at < pixels; at += LANES) {
            const long count = pixels - at < LANES ? pixels - at : LANES;
            for (long pixel = 0; pixel < count; ++pixel)
                for (long c = 0; c < channels; ++c)
                    x[c * LANES + pixel] = bits_of<float>(uint32_t(half[(at + pixel) * channels + c]) << 16);
            long row = 0;
            for (; row + ROWS <= many; row += ROWS)
                sums_of<ROWS>(x.data(), rows + row * channels, channels, to + row * pixels + at, pixels, count);
            for (; row < many; ++row)
                sums_of<1>(x.data(), rows + row * channels, channels, to + row * pixels + at, pixels, count);
        }
    }
}
