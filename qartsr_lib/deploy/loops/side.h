// L2 x in bfloat16. Products of two bfloat16 numbers are exact in float32, and each sum runs over the channels in their
// order, so that its bits are the same with and without fused multiply-add, whatever the vectors' length.
#pragma once
#include "vectors.h"

struct Side {
    const float* rows;  // of L2 tap by tap: (many, channels)
    long many, channels, pixels;
    uint16_t* to;  // (many, pixels)

    long room() const { return (channels + LANES - 1) / LANES * LANES * LANES; }

    // Of `count` pixels from `first` on: x (count, channels), numbers that bfloat16 can hold; and room() for LANES of
    // them by channels.
    void multiply(const float* x, long first, long count, float* turned) const {
        for (long at = 0; at < count; at += LANES) {
            const long some = count - at < LANES ? count - at : LANES;
            turn(x + at * channels, some, turned);
            long row = 0;
            for (; row + ROWS <= many; row += ROWS) sums<ROWS>(turned, row, first + at, some);
            for (; row < many; ++row) sums<1>(turned, row, first + at, some);
        }
    }

  private:
#ifdef __AVX512F__
    static constexpr long ROWS = 9;  // sums held in registers at a time
#else
    static constexpr long ROWS = 3;
#endif

    // (some, channels) -> (channels, LANES).
    void turn(const float* x, long some, float* turned) const {
        for (long c = 0; c < channels; c += LANES) {
            if (some < LANES || channels - c < LANES) {
                for (long pixel = 0; pixel < some; ++pixel)
                    for (long i = c; i < channels && i < c + LANES; ++i) turned[i * LANES + pixel] = x[pixel * channels + i];
                continue;
            }
            Floats block[LANES];
            for (long pixel = 0; pixel < LANES; ++pixel) block[pixel] = load<Floats>(x + pixel * channels + c);
            transpose(block);
            for (long i = 0; i < LANES; ++i) store(turned + (c + i) * LANES, block[i]);
        }
    }

    template <long MANY>
    void sums(const float* turned, long row, long at, long some) const {
        Floats total[MANY] = {};
        for (long c = 0; c < channels; ++c) {
            const Floats value = load<Floats>(turned + c * LANES);
#pragma GCC unroll 16
            for (long i = 0; i < MANY; ++i) total[i] += value * rows[(row + i) * channels + c];
        }
        for (long i = 0; i < MANY; ++i) {
            uint16_t* here = to + (row + i) * pixels + at;
            if (some == LANES) store_bfloat16(here, total[i]);
            else {
                uint16_t rounded[LANES];
                store_bfloat16(rounded, total[i]);
                std::memcpy(here, rounded, 2 * some);
            }
        }
    }
};
