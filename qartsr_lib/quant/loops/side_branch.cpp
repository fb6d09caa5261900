// The low-rank branch L1 L2 x beside a convolution (a linear layer is one of 1 x 1), and its gradients.
// Tensors are (images, rows, columns, channels); L2 is (rank, kernel rows, kernel columns, channels), so that what
// one kernel row sees lies in one stretch of memory. Libraries compute at least 16 output channels at a time; ranks
// are 1 or 2.
#include "common.h"

namespace {

struct Side {
    long images, height, width, channels, rank, kernel_height, kernel_width, stride_height, stride_width, pad_height,
        pad_width;

    long rows() const { return (height + 2 * pad_height - kernel_height) / stride_height + 1; }
    long columns() const { return (width + 2 * pad_width - kernel_width) / stride_width + 1; }
    long stretch() const { return kernel_width * channels; }          // what a kernel row sees, without borders
    long each() const { return kernel_height * stretch(); }           // weights of one rank
    long first_row(long row) const { return row * stride_height - pad_height; }
    long first_column(long column) const { return column * stride_width - pad_width; }

    // The kernel columns that meet the image at output `column`.
    void meet(long column, long& begin, long& end) const {
        begin = std::max(0L, -first_column(column));
        end = std::min(kernel_width, width - first_column(column));
    }

    // Calls work(from, at, length) for every kernel row that meets the image at output (row, column): x[from] and
    // the weights [at] of one rank, both for `length` numbers.
    template <class Work>
    void stretches(long image, long row, long column, Work work) const {
        long begin, end;
        meet(column, begin, end);
        const long y = first_row(row), x = first_column(column);
        for (long k = std::max(0L, -y); k < std::min(kernel_height, height - y); ++k)
            work(((image * height + y + k) * width + x + begin) * channels, k * stretch() + begin * channels,
                 (end - begin) * channels);
    }
};

}  // namespace

extern "C" void side_narrow(const float* x, const float* weight, const long* sizes, long threads, float* narrow) {
    const Side side = *reinterpret_cast<const Side*>(sizes);
    const long rows = side.rows(), columns = side.columns();
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows * columns * side.each() > ALONE)
    for (long line = 0; line < side.images * rows; ++line)
        for (long column = 0; column < columns; ++column)
            for (long r = 0; r < side.rank; ++r) {
                Floats total{};
                float rest = 0;
                side.stretches(line / rows, line % rows, column, [&](long from, long at, long length) {
                    const float *seen = x + from, *by = weight + r * side.each() + at;
                    long i = 0;
                    for (; i + LANES <= length; i += LANES) total += load<Floats>(seen + i) * load<Floats>(by + i);
                    for (; i < length; ++i) rest += seen[i] * by[i];
                });
                narrow[(line * columns + column) * side.rank + r] = sum(total) + rest;
            }
}

// Adds to grad_x what comes through L2, and finds grad_weight.
extern "C" void side_narrow_gradients(const float* gradient, const float* x, const float* weight, const long* sizes,
                                      long threads, float* grad_x, float* grad_weight) {
    const Side side = *reinterpret_cast<const Side*>(sizes);
    const long rows = side.rows(), columns = side.columns(), weights = side.rank * side.each();
    const long step = 1 + BLOCK / columns, groups = (rows + step - 1) / step, jobs = side.images * groups;
    std::vector<double> to_weight(jobs * weights);
    double* const by_job = to_weight.data();
#pragma omp parallel num_threads(threads) if (threads > 1 && rows * columns * side.each() > ALONE)
    {
#pragma omp for schedule(static)
        for (long job = 0; job < jobs; ++job) {
            const long image = job / groups, first = job % groups * step;
            std::vector<float> sums(weights);
            for (long row = first; row < std::min(rows, first + step); ++row)
                for (long column = 0; column < columns; ++column) {
                    const float* given = gradient + ((image * rows + row) * columns + column) * side.rank;
                    side.stretches(image, row, column, [&](long from, long at, long length) {
                        for (long r = 0; r < side.rank; ++r) {
                            float* sum = sums.data() + r * side.each() + at;
#pragma omp simd
                            for (long i = 0; i < length; ++i) sum[i] += given[r] * x[from + i];
                        }
                    });
                }
            std::copy(sums.begin(), sums.end(), by_job + job * weights);
        }
#pragma omp for schedule(static)
        for (long line = 0; line < side.images * side.height; ++line)
            for (long k = 0; k < side.kernel_height; ++k) {
                const long row = (line % side.height + side.pad_height - k) / side.stride_height;
                if (row < 0 || row >= rows || side.first_row(row) + k != line % side.height) continue;
                for (long column = 0; column < columns; ++column) {
                    long begin, end;
                    side.meet(column, begin, end);
                    float* to = grad_x + (line * side.width + side.first_column(column) + begin) * side.channels;
                    for (long r = 0; r < side.rank; ++r) {
                        const float given =
                            gradient[((line / side.height * rows + row) * columns + column) * side.rank + r];
                        const float* by = weight + r * side.each() + k * side.stretch() + begin * side.channels;
#pragma omp simd
                        for (long i = 0; i < (end - begin) * side.channels; ++i) to[i] += given * by[i];
                    }
                }
            }
    }
    add_up(to_weight, weights, grad_weight);
}

// y (pixels, channels) += narrow (pixels, rank) times weight (rank, channels), which is L1 transposed.
extern "C" void side_spread(const float* narrow, const float* weight, long pixels, long rank, long channels,
                            long threads, float* y) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && pixels * channels > ALONE)
    for (long pixel = 0; pixel < pixels; ++pixel) {
        float* to = y + pixel * channels;
        for (long r = 0; r < rank; ++r) {
            const float given = narrow[pixel * rank + r];
            const float* by = weight + r * channels;
#pragma omp simd
            for (long c = 0; c < channels; ++c) to[c] += given * by[c];
        }
    }
}

extern "C" void side_spread_gradients(const float* gradient, const float* narrow, const float* weight, long pixels,
                                      long rank, long channels, long threads, float* grad_narrow, float* grad_weight) {
    const long step = 1 + BLOCK / channels, jobs = (pixels + step - 1) / step;
    std::vector<double> to_weight(jobs * rank * channels);
    double* const by_job = to_weight.data();
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && pixels * channels > ALONE)
    for (long job = 0; job < jobs; ++job) {
        std::vector<float> sums(rank * channels);
        for (long pixel = job * step; pixel < std::min(pixels, (job + 1) * step); ++pixel)
            for (long r = 0; r < rank; ++r) {
                const float *given = gradient + pixel * channels, *by = weight + r * channels;
                const float seen = narrow[pixel * rank + r];
                float *sum = sums.data() + r * channels, total = 0;
#pragma omp simd reduction(+ : total)
                for (long c = 0; c < channels; ++c) {
                    total += given[c] * by[c];
                    sum[c] += given[c] * seen;
                }
                grad_narrow[pixel * rank + r] = total;
            }
        std::copy(sums.begin(), sums.end(), by_job + job * rank * channels);
    }
    add_up(to_weight, rank * channels, grad_weight);
}
