// Only for the benchmark: the loop of the published CUDA kernel carried over as it stands, one output number at a time.
#include <math.h>
#include <stdint.h>

extern "C" void plain_port(const float *value, const int64_t *shapes, const float *locations, const float *weights,
                           int64_t batch, int64_t places, int64_t heads, int64_t depth, int64_t queries, int64_t levels,
                           int64_t points, float *out) {
    for (int64_t index = 0; index < batch * queries * heads * depth; ++index) {
        int64_t channel = index % depth, head = index / depth % heads;
        int64_t picture = index / depth / heads / queries, sample = index / depth * levels * points;
        const float *base = value + (picture * places * heads + head) * depth + channel;
        float sum = 0;
        for (int64_t level = 0; level < levels; ++level) {
            int64_t height = shapes[2 * level], width = shapes[2 * level + 1], row = heads * depth;
            for (int64_t point = 0; point < points; ++point, ++sample) {
                float x = locations[2 * sample] * width - 0.5f, y = locations[2 * sample + 1] * height - 0.5f;
                if (!(x > -1 && y > -1 && x < width && y < height)) continue;
                int64_t left = int64_t(floorf(x)), upper = int64_t(floorf(y));
                float fx = x - left, fy = y - upper, blend = 0;
                if (upper >= 0 && left >= 0) blend += (1 - fy) * (1 - fx) * base[(upper * width + left) * row];
                if (upper >= 0 && left + 1 < width) blend += (1 - fy) * fx * base[(upper * width + left + 1) * row];
                if (upper + 1 < height && left >= 0) blend += fy * (1 - fx) * base[((upper + 1) * width + left) * row];
                if (upper + 1 < height && left + 1 < width)
                    blend += fy * fx * base[((upper + 1) * width + left + 1) * row];
                sum += weights[sample] * blend;
            }
            base += height * width * row;
        }
        out[index] = sum;
    }
}
