// What comes after an integer product, in one loop over its output: sums of codes under the kernel, low-rank branch,
// constants, what a residual block adds; and the moments that the next GroupNorm needs. Outputs are (rows, columns,
// channels).
#include <vector>

#include "vectors.h"

namespace {

struct Axis {
    long taps, stride, padding, dilation, input, output;

    // Outputs first..end lie over positions of the input under `tap`.
    void covered(long tap, long& first, long& end) const {
        const long shift = tap * dilation - padding;
        first = shift >= 0 ? 0 : (-shift + stride - 1) / stride;
        end = input - shift <= 0 ? 0 : (input - shift - 1) / stride + 1;
        if (end > output) end = output;
    }
    long position(long at, long tap) const { return at * stride + tap * dilation - padding; }
};

inline float number(float value) { return value; }
inline float number(uint16_t value) { return bits_of<float>(uint32_t(value) << 16); }

// Add `line` (or every stride-th number of it) where a tap lies over it.
template <class Number>
void add_tap(float* to, const Number* line, const Axis& columns, long tap) {
    long first, end;
    columns.covered(tap, first, end);
    const Number* from = line + columns.position(0, tap);
    if (columns.stride == 1)
        for (long at = first; at < end; ++at) to[at] += number(from[at]);
    else
        for (long at = first; at < end; ++at) to[at] += number(from[at * columns.stride]);
}

inline Floats load_some(const float* from, long count) {
    Floats loaded = all(0);
    for (long lane = 0; lane < count; ++lane) loaded[lane] = from[lane];
    return loaded;
}

inline void store_some(float* to, Floats stored, long count) {
    for (long lane = 0; lane < count; ++lane) to[lane] = stored[lane];
}

struct Task {
    long channels, rank;
    const float *sum_scale, *side_out;
};

// One row of an image, BLOCKS times LANES channels from `from`, or with BLOCKS 0 the last `count`. `narrow` holds the
// sums under the kernel, then each rank's L2 x; `found` the row's sums, then its sums of squares, for each block.
template <int BLOCKS, bool RANKED, bool RESIDUAL>
void channels_of_row(const Task& task, float* y, const float* residual, const float* narrow, long width,
                     const float* constant, const int32_t* kind, long from, long count, const float* added,
                     Floats* found) {
    constexpr int MANY = BLOCKS ? BLOCKS : 1;
    const auto read = [count](const float* at) { return BLOCKS ? load<Floats>(at) : load_some(at, count); };
    const long channels = task.channels, rank = task.rank;
    Floats per_sum[MANY], out[MANY], fixed[MANY], total[MANY], squares[MANY];
#pragma GCC unroll 4
    for (int b = 0; b < MANY; ++b) {
        per_sum[b] = read(task.sum_scale + from + b * LANES);
        out[b] = RANKED ? read(task.side_out + from + b * LANES) : all(0);
        total[b] = squares[b] = fixed[b] = all(0);
    }
    long known = -1;
    for (long at = 0; at < width; ++at) {
        if (kind[at] != known) {
            known = kind[at];
#pragma GCC unroll 4
            for (int b = 0; b < MANY; ++b) {
                fixed[b] = read(constant + known * channels + from + b * LANES);
                if (added) fixed[b] += read(added + from + b * LANES);
            }
        }
#pragma GCC unroll 4
        for (int b = 0; b < MANY; ++b) {
            const long here = at * channels + from + b * LANES;
            Floats value = read(y + here) + (fixed[b] + narrow[at] * per_sum[b]);
            if (RANKED) value += narrow[width + at] * out[b];
            for (long k = 1; RANKED && k < rank; ++k)
                value += narrow[(1 + k) * width + at] * read(task.side_out + k * channels + from + b * LANES);
            if (RESIDUAL) value += read(residual + here);
            if (BLOCKS) store(y + here, value);
            else store_some(y + here, value, count);
            total[b] += value;
            squares[b] += value * value;
        }
    }
    for (int b = 0; b < MANY; ++b) {
        found[2 * b] = total[b];
        found[2 * b + 1] = squares[b];
    }
}

typedef decltype(&channels_of_row<1, true, true>) Form;

template <int BLOCKS>
Form form_for(bool ranked, bool residual) {
    if (ranked) return residual ? channels_of_row<BLOCKS, true, true> : channels_of_row<BLOCKS, true, false>;
    return residual ? channels_of_row<BLOCKS, false, true> : channels_of_row<BLOCKS, false, false>;
}

}  // namespace

// Arguments: y in place; sums (images, rows, columns) of the input; planes (taps, rank, images, rows, columns) or null;
// side_out (rank, channels); constants (row kinds, column kinds, channels) and each row's and column's kind;
// added (images, channels) or null; residual like y or null; moments (images, output rows, 2, channels) or null.
extern "C" void finish(float* y, long images, long channels, const long* row_axis, const long* column_axis,
                       const float* sums, const float* sum_scale, const uint16_t* planes, const float* side_out,
                       long rank, const float* constants, const int32_t* row_kind, const int32_t* column_kind,
                       long column_kinds, const float* added, const float* residual, double* moments) {
    const Axis rows = *reinterpret_cast<const Axis*>(row_axis), columns = *reinterpret_cast<const Axis*>(column_axis);
    const long width = columns.output, plane = images * rows.input * columns.input;
    const Task task{channels, rank, sum_scale, side_out};
#pragma omp parallel for collapse(2) schedule(static) if (images * rows.output * width * channels > 16384)
    for (long image = 0; image < images; ++image)
        for (long row = 0; row < rows.output; ++row) {
            std::vector<float> narrow((1 + rank) * width);
            for (long i = 0; i < rows.taps; ++i) {
                const long position = rows.position(row, i);
                if (position < 0 || position >= rows.input) continue;
                const long line = (image * rows.input + position) * columns.input;
                for (long j = 0; j < columns.taps; ++j) {
                    add_tap(narrow.data(), sums + line, columns, j);
                    for (long k = 0; k < rank; ++k)
                        add_tap(&narrow[(1 + k) * width], planes + ((i * columns.taps + j) * rank + k) * plane + line,
                                columns, j);
                }
            }
            const long start = (image * rows.output + row) * width * channels;
            for (long c = 0, blocks; c < channels; c += (blocks ? blocks : 1) * LANES) {
                const long left = channels - c;
                blocks = left >= 4 * LANES ? 4 : left >= 2 * LANES ? 2 : left >= LANES ? 1 : 0;
                const Form form = blocks == 4   ? form_for<4>(rank, residual)
                                  : blocks == 2 ? form_for<2>(rank, residual)
                                  : blocks == 1 ? form_for<1>(rank, residual)
                                                : form_for<0>(rank, residual);
                Floats found[8];
                form(task, y + start, residual ? residual + start : nullptr, narrow.data(), width,
                     constants + row_kind[row] * column_kinds * channels, column_kind, c, left,
                     added ? added + image * channels : nullptr, found);
                if (!moments) continue;
                double* of_row = moments + (image * rows.output + row) * 2 * channels + c;
                const long many = blocks ? blocks * LANES : left;
                for (long i = 0; i < many; ++i) {
                    of_row[i] = found[i / LANES * 2][i % LANES];
                    of_row[channels + i] = found[i / LANES * 2 + 1][i % LANES];
                }
            }
        }
}

// Sums and sums of squares of x (images, pixels, channels) by channel, over `parts` runs of pixels each:
// (images, parts, 2, channels).
extern "C" void moments(const float* x, long images, long pixels, long channels, long parts, double* found) {
#pragma omp parallel for collapse(2) schedule(static) if (images * pixels * channels > 16384)
    for (long image = 0; image < images; ++image)
        for (long part = 0; part < parts; ++part)
            for (long c = 0; c < channels; c += LANES) {
                const long count = channels - c < LANES ? channels - c : LANES;
                Floats total = all(0), squares = all(0);
                for (long at = part * pixels / parts; at < (part + 1) * pixels / parts; ++at) {
                    const float* here = x + (image * pixels + at) * channels + c;
                    const Floats value = count == LANES ? load<Floats>(here) : load_some(here, count);
                    total += value;
                    squares += value * value;
                }
                double* to = found + (image * parts + part) * 2 * channels + c;
                for (long lane = 0; lane < count; ++lane) {
                    to[lane] = total[lane];
                    to[channels + lane] = squares[lane];
                }
            }
}

// GroupNorm as scale * x + shift, (images, channels) each, from moments (images, parts, 2, channels).
extern "C" void fold(const double* moments, long images, long parts, long channels, long groups, long pixels, double eps,
                     const float* weight, const float* bias, float* scale, float* shift) {
    const long wide = channels / groups;
    for (long image = 0; image < images; ++image)
        for (long group = 0; group < groups; ++group) {
            double total = 0, squares = 0;
            for (long part = 0; part < parts; ++part)
                for (long c = group * wide; c < (group + 1) * wide; ++c) {
                    total += moments[(image * parts + part) * 2 * channels + c];
                    squares += moments[((image * parts + part) * 2 + 1) * channels + c];
                }
            const double mean = total / (pixels * wide), spread = squares / (pixels * wide) - mean * mean;
            const double inverse = 1 / __builtin_sqrt((spread > 0 ? spread : 0) + eps);
            for (long c = group * wide; c < (group + 1) * wide; ++c) {
                scale[image * channels + c] = inverse * weight[c];
                shift[image * channels + c] = bias[c] - mean * inverse * weight[c];
            }
        }
}
