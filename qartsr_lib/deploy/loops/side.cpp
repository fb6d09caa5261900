#include <vector>

#include "side.h"

// half (pixels, channels) bfloat16 and rows as Side has them -> (many, pixels) bfloat16.
extern "C" void side(const uint16_t* half, const float* rows, long many, long pixels, long channels, uint16_t* to) {
    const Side side{rows, many, channels, pixels, to};
    const long step = LANES * (1 + 512 / channels);
#pragma omp parallel for schedule(static) if (pixels * channels > 16384)
    for (long first = 0; first < pixels; first += step) {
        const long count = pixels - first < step ? pixels - first : step;
        std::vector<float> x(count * channels), turned(side.room());
        for (long at = 0; at < count * channels; ++at)
            x[at] = bits_of<float>(uint32_t(half[first * channels + at]) << 16);
        side.multiply(x.data(), first, count, turned.data());
    }
}
