// The operator on the CPU, written in vector types of the compiler: built once for each instruction set.
//
// Work is laid out by picture and head. A head's levels are copied into one tile of their own first: in the operator's
// layout a head's neighbouring places lie heads * depth numbers apart and fall into the same few lines of the cache.
// For each query the softmax, the corners' places and their weights are worked out for all its samples at once, one
// sample a lane; then each corner is a run of `depth` numbers that is scaled and added to sums kept in registers.
// Corners outside a map get weight zero and the address of a corner inside, so nothing branches.
//
// Names: T the type of sums (float or double), C the type of the tile (T, or bfloat16 with float sums).
#include "msda_cpu.h"

#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define BYTES 64
#define NAME(function) function##_avx512
#elif defined(__AVX2__)
#define BYTES 32
#define NAME(function) function##_avx2
#else
#define BYTES 16
#define NAME(function) function##_portable
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

struct bfloat16 { uint16_t bits; };
struct half { uint16_t bits; };

template <class T> struct Lanes;
template <> struct Lanes<float> {
    typedef float V __attribute__((vector_size(BYTES)));
    typedef int32_t I __attribute__((vector_size(BYTES)));
    typedef int32_t Int;
};
template <> struct Lanes<double> {
    typedef double V __attribute__((vector_size(BYTES)));
    typedef int64_t I __attribute__((vector_size(BYTES)));
    typedef int64_t Int;
};
template <class T> using Vec = typename Lanes<T>::V;
template <class T> using IVec = typename Lanes<T>::I;
template <class T> using Int = typename Lanes<T>::Int;
template <class T> constexpr int LANES = BYTES / sizeof(T);

template <class To, class From> INLINE To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}
template <class V, class P> INLINE V load(const P *from) {
    V v;
    memcpy(&v, from, sizeof(v));
    return v;
}
template <class V, class P> INLINE void store(P *to, V v) { memcpy(to, &v, sizeof(v)); }

// A run of a tile as a vector of sums' type.
INLINE Vec<float> numbers(const float *from) { return load<Vec<float>>(from); }
INLINE Vec<double> numbers(const double *from) { return load<Vec<double>>(from); }
INLINE Vec<float> numbers(const bfloat16 *from) {
    typedef uint16_t Short __attribute__((vector_size(BYTES / 2)));
    typedef uint32_t Long __attribute__((vector_size(BYTES)));
    return bits<Vec<float>>(__builtin_convertvector(load<Short>(from), Long) << 16);
}

INLINE float widen(float x) { return x; }
INLINE double widen(double x) { return x; }
INLINE float widen(bfloat16 x) { return bits<float>(uint32_t(x.bits) << 16); }
INLINE float widen(half x) {
    uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13, sign = uint32_t(x.bits & 0x8000) << 16;
    uint32_t special = (x.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0;  // infinity, not a number
    uint32_t scaled = bits<uint32_t>(bits<float>(magnitude) * 0x1p112f);  // subnormal halves become normal
    return bits<float>(sign | (special ? special | magnitude : scaled));
}

// Rounded to the nearest, ties to even.
INLINE void narrow(float x, float &to) { to = x; }
INLINE void narrow(double x, double &to) { to = x; }
INLINE void narrow(float x, bfloat16 &to) {
    uint32_t u = bits<uint32_t>(x);
    to.bits = x == x ? (u + 0x7fff + ((u >> 16) & 1)) >> 16 : 0x7fc0;
}
INLINE void narrow(float x, half &to) {
    uint32_t u = bits<uint32_t>(x), sign = u & 0x80000000u, magnitude = u ^ sign, out;
    if (magnitude >= 0x47800000u)  // 65536 and more, infinity, not a number
        out = magnitude > 0x7f800000u ? 0x7e00 : 0x7c00;
    else if (magnitude < 0x38800000u)  // below the smallest normal half: the addition rounds
        out = bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000u;
    else
        out = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    to.bits = out | (sign >> 16);
}

template <class T, class V> INLINE void keep(V v, T *to) { store(to, v); }
INLINE void keep(Vec<float> v, bfloat16 *to) {
    typedef uint32_t Long __attribute__((vector_size(BYTES)));
    typedef uint16_t Short __attribute__((vector_size(BYTES / 2)));
    Long u = bits<Long>(v);
    Long rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    store(to, __builtin_convertvector(v == v ? rounded : rounded - rounded + 0x7fc0, Short));
}
INLINE void keep(Vec<float> v, half *to) {
    float wide[LANES<float>];
    store(wide, v);
    for (int lane = 0; lane < LANES<float>; ++lane) narrow(wide[lane], to[lane]);
}

// Lanes 0, 2, 4, ... (First 0) or 1, 3, 5, ... of two vectors laid end to end; lanes exchanged with those Step away.
template <class V, int Step, int... I> struct Shuffle {
    template <int First> static INLINE V every_other(V a, V b) {
        return __builtin_shufflevector(a, b, (2 * I + First)...);
    }
    static INLINE V exchanged(V v) { return __builtin_shufflevector(v, v, (I ^ Step)...); }
};
template <class V, int Step, int N, int... I> struct Counted : Counted<V, Step, N - 1, N - 1, I...> {};
template <class V, int Step, int... I> struct Counted<V, Step, 0, I...> { typedef Shuffle<V, Step, I...> type; };
template <class T, int Step> using Shuffled = typename Counted<Vec<T>, (Step < LANES<T> ? Step : 0), LANES<T>>::type;

struct Larger { template <class V> INLINE V operator()(V a, V b) const { return a > b ? a : b; } };
struct Sum { template <class V> INLINE V operator()(V a, V b) const { return a + b; } };

// Every lane gets the result over its group of `span` lanes, a power of two.
template <class T, class F> INLINE Vec<T> over(Vec<T> v, int span, F f) {
    if (span > 1) v = f(v, Shuffled<T, 1>::exchanged(v));
    if (span > 2) v = f(v, Shuffled<T, 2>::exchanged(v));
    if (span > 4) v = f(v, Shuffled<T, 4>::exchanged(v));
    if (span > 8) v = f(v, Shuffled<T, 8>::exchanged(v));
    return v;
}

// exp of numbers not above zero; relative error about 1e-7.
INLINE Vec<float> exponential(Vec<float> x) {
    Vec<float> lowest = x - x - 87.0f;  // where the result is nearly the smallest normal number
    x = x > lowest ? x : lowest;
    IVec<float> n = __builtin_convertvector(x * 1.44269504f - 0.5f, IVec<float>);
    Vec<float> count = __builtin_convertvector(n, Vec<float>);
    Vec<float> r = x - count * 0.693359375f - count * -2.12194440e-4f;
    Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * bits<Vec<float>>((n + 127) << 23);
}
INLINE Vec<double> exponential(Vec<double> x) {
    for (int i = 0; i < LANES<double>; ++i) x[i] = __builtin_exp(x[i]);
    return x;
}

// What is the same for every query: of each sample its level's size, start and row, lanes beyond the samples idle. And
// room for what is worked out for a row of queries.
template <class T> struct Plan {
    int64_t samples, queries, lanes;  // samples of a query; queries of a row; lanes of a row, a multiple of LANES
    int span;                         // lanes that a softmax reaches over, in each vector
    Int<T> *width, *height, *start;
    T *x, *y, *share, *pair;          // read from the problem: pixels, shares, and (x, y) as they lie there
    T *base_x, *base_y, *step_x, *step_y;
    T *weight[4];                     // of the corners: upper left, upper right, lower left, lower right
    T *left, *right, *upper, *lower, *has_left, *has_right, *has_upper, *has_lower;  // backward: the factors
    Int<T> *corner, *right_by, *down_by;  // address of the upper left corner, and the way to its neighbours
    char *memory;

    explicit Plan(const msda_problem &p) {
        samples = p.levels * p.points;
        bool several = samples < LANES<T> && !(samples & (samples - 1)) && samples > 0;
        queries = several ? LANES<T> / samples : 1;
        span = several ? int(samples) : LANES<T>;
        lanes = several ? LANES<T> : (samples + LANES<T> - 1) / LANES<T> * LANES<T>;
        const int64_t arrays = 28;
        memory = (char *)malloc(arrays * lanes * sizeof(T) + 64);
        char *at = (char *)((uintptr_t(memory) + 63) & ~uintptr_t(63));
        memset(at, 0, arrays * lanes * sizeof(T));
        auto room = [&](auto *&array, int64_t count = 1) {
            array = (decltype(+array))at;
            at += count * lanes * sizeof(T);
        };
        room(width), room(height), room(start), room(x), room(y), room(share), room(pair, 2);
        room(base_x), room(base_y), room(step_x), room(step_y);
        for (auto &one : weight) room(one);
        room(left), room(right), room(upper), room(lower);
        room(has_left), room(has_right), room(has_upper), room(has_lower);
        room(corner), room(right_by), room(down_by);
        for (int64_t lane = 0; lane < lanes; ++lane) width[lane] = height[lane] = 1;
        for (int64_t lane = 0; lane < queries * samples; ++lane) {
            int64_t before = 0, level = lane % samples / p.points;
            for (int64_t one = 0; one < level; ++one) before += p.shapes[2 * one] * p.shapes[2 * one + 1];
            height[lane] = Int<T>(p.shapes[2 * level]), width[lane] = Int<T>(p.shapes[2 * level + 1]);
            start[lane] = Int<T>(before);
            // Locations: x * width - 0.5. Where there is a reference, `place` writes what belongs to the query.
            base_x[lane] = base_y[lane] = T(-0.5);
            step_x[lane] = p.reference ? T(1) : T(width[lane]), step_y[lane] = p.reference ? T(1) : T(height[lane]);
        }
    }
    ~Plan() { free(memory); }
    Plan(const Plan &) = delete;
    Plan &operator=(const Plan &) = delete;

    // Where offsets of zero lie, in pixels, and how far an offset of one reaches, for the query in slot `slot`.
    INLINE void place(const msda_problem &p, int64_t picture, int64_t query, int64_t slot) {
        const T *given = (const T *)p.reference + picture * p.reference_picture +
                         query * p.reference_levels * p.reference_numbers;
        int64_t next = p.reference_levels > 1 ? p.reference_numbers : 0, lane = slot * samples;
        for (int64_t level = 0; level < p.levels; ++level, given += next) {
            T w = T(p.shapes[2 * level + 1]), h = T(p.shapes[2 * level]);
            T x = given[0] * w - T(0.5), y = given[1] * h - T(0.5);
            for (int64_t point = 0; point < p.points; ++point, ++lane) {
                base_x[lane] = x, base_y[lane] = y;
                if (p.reference_numbers == 4) {
                    step_x[lane] = given[2] * w * T(0.5) / T(p.points);
                    step_y[lane] = given[3] * h * T(0.5) / T(p.points);
                }
            }
        }
    }

    // Works out a row: queries [query, query + count) of a head. `stride`: numbers from a place to the next.
    template <bool BACKWARD>
    INLINE void work(const msda_problem &p, int64_t picture, int64_t head, int64_t query, int64_t count,
                     int64_t stride) {
        const T *positions = (const T *)p.positions + picture * p.position_picture + query * p.position_query +
                             head * samples * 2;
        const T *shares = (const T *)p.shares + picture * p.share_picture + query * p.share_query + head * samples;
        if (p.reference)
            for (int64_t slot = 0; slot < count; ++slot) place(p, picture, query + slot, slot);
        if (samples != lanes || count != 1) {  // lanes to spare, or several queries: gather them
            for (int64_t slot = 0; slot < count; ++slot)
                for (int64_t i = 0; i < samples; ++i) {
                    pair[2 * (slot * samples + i)] = positions[slot * p.position_query + 2 * i];
                    pair[2 * (slot * samples + i) + 1] = positions[slot * p.position_query + 2 * i + 1];
                    share[slot * samples + i] = shares[slot * p.share_query + i];
                }
            // Idle lanes must not take part in a softmax.
            T idle = p.reference ? T(-1e30) : T(0);
            for (int64_t lane = count * samples; lane < lanes; ++lane) share[lane] = idle;
            positions = pair, shares = share;
        }
        typedef Vec<T> V;
        typedef IVec<T> I;
        V scale = V{} + T(1);
        if (p.reference) {
            V most = load<V>(shares), total = V{};
            for (int64_t at = LANES<T>; at < lanes; at += LANES<T>) most = Larger()(most, load<V>(shares + at));
            most = over<T>(most, span, Larger());
            for (int64_t at = 0; at < lanes; at += LANES<T>) {
                V e = exponential(V(load<V>(shares + at) - most));
                store(share + at, e);
                total += e;
            }
            scale = scale / over<T>(total, span, Sum());
            shares = share;
        }
        for (int64_t at = 0; at < lanes; at += LANES<T>) {
            V a = load<V>(positions + 2 * at), b = load<V>(positions + 2 * at + LANES<T>);
            V px = Shuffled<T, 0>::template every_other<0>(a, b), py = Shuffled<T, 0>::template every_other<1>(a, b);
            px = px * load<V>(step_x + at) + load<V>(base_x + at);
            py = py * load<V>(step_y + at) + load<V>(base_y + at);
            I w = load<I>(width + at), h = load<I>(height + at);
            I inside = (px > T(-1)) & (px < __builtin_convertvector(w, V)) & (py > T(-1)) &
                       (py < __builtin_convertvector(h, V));
            V amount = inside ? load<V>(shares + at) * scale : V{};
            px = inside ? px : V{}, py = inside ? py : V{};
            I ix = __builtin_convertvector(px, I), iy = __builtin_convertvector(py, I);
            ix += px < __builtin_convertvector(ix, V), iy += py < __builtin_convertvector(iy, V);  // true is -1: floor
            V fx = px - __builtin_convertvector(ix, V), fy = py - __builtin_convertvector(iy, V);
            I no_left = ix < 0, no_upper = iy < 0, no_right = ix > w - 2, no_lower = iy > h - 2;
            V gx = no_left ? V{} : T(1) - fx, gy = no_upper ? V{} : T(1) - fy;
            fx = no_right ? V{} : fx, fy = no_lower ? V{} : fy;
            // Outside the map the first row, or column, stands in for the one before it, the last for the one after.
            I first_x = no_left ? I{} : ix, first_y = no_upper ? I{} : iy;
            store(corner + at, I((load<I>(start + at) + first_y * w + first_x) * Int<T>(stride)));
            I aside = (no_left | no_right) ? I{} : I{} + Int<T>(stride);
            I below = (no_upper | no_lower) ? I{} : w * Int<T>(stride);
            store(right_by + at, aside), store(down_by + at, below);
            if (BACKWARD) {
                V one = V{} + T(1), none = V{};
                gy = inside ? gy : none, fy = inside ? fy : none;
                store(share + at, amount);
                store(left + at, gx), store(right + at, fx), store(upper + at, gy), store(lower + at, fy);
                store(has_left + at, no_left ? none : one), store(has_right + at, no_right ? none : one);
                store(has_upper + at, no_upper ? none : one), store(has_lower + at, no_lower ? none : one);
            } else {
                gy *= amount, fy *= amount;
                store(weight[0] + at, V(gy * gx)), store(weight[1] + at, V(gy * fx));
                store(weight[2] + at, V(fy * gx)), store(weight[3] + at, V(fy * fx));
            }
        }
    }
};

// Sums of one query and head, columns [at, at + N * LANES): each corner's run times its weight.
template <int N, class T, class C, class V>
INLINE void gather(const Plan<T> &plan, int64_t first, const C *tile, int64_t at, V *out) {
    Vec<T> sums[N] = {}, others[N] = {};  // two sets: half as long a chain of additions
    tile += at;
    for (int64_t i = first; i < first + plan.samples; ++i) {
        const C *a = tile + plan.corner[i], *b = a + plan.right_by[i], *c = a + plan.down_by[i],
                *d = c + plan.right_by[i];
        T wa = plan.weight[0][i], wb = plan.weight[1][i], wc = plan.weight[2][i], wd = plan.weight[3][i];
        for (int n = 0; n < N; ++n) {
            sums[n] += numbers(a + n * LANES<T>) * wa;
            others[n] += numbers(b + n * LANES<T>) * wb;
            sums[n] += numbers(c + n * LANES<T>) * wc;
            others[n] += numbers(d + n * LANES<T>) * wd;
        }
    }
    for (int n = 0; n < N; ++n) {
        sums[n] += others[n];
        keep(sums[n], out + at + n * LANES<T>);
    }
}

template <class T, class C, class V>
INLINE void gather_all(const Plan<T> &plan, int64_t first, const C *tile, int64_t depth, V *out) {
    int64_t at = 0;
    // Eight vectors fill the registers that there are on AVX-512; elsewhere sixteen registers hold two sets of four.
    if (BYTES == 64)
        for (; at + 8 * LANES<T> <= depth; at += 8 * LANES<T>) gather<8>(plan, first, tile, at, out);
    for (; at + 4 * LANES<T> <= depth; at += 4 * LANES<T>) gather<4>(plan, first, tile, at, out);
    for (; at + 2 * LANES<T> <= depth; at += 2 * LANES<T>) gather<2>(plan, first, tile, at, out);
    for (; at + LANES<T> <= depth; at += LANES<T>) gather<1>(plan, first, tile, at, out);
    for (; at < depth; ++at) {
        T sum = 0;
        for (int64_t i = first; i < first + plan.samples; ++i) {
            const C *a = tile + at + plan.corner[i], *c = a + plan.down_by[i];
            sum += widen(a[0]) * plan.weight[0][i] + widen(a[plan.right_by[i]]) * plan.weight[1][i] +
                   widen(c[0]) * plan.weight[2][i] + widen(c[plan.right_by[i]]) * plan.weight[3][i];
        }
        narrow(sum, out[at]);
    }
}

// Tasks are taken one after the other by whoever is free, so that a thread which was held up holds up nobody.
template <class F> struct Job {
    const F &one;
    int64_t tasks, next;
    static void run(void *job) { ((Job *)job)->loop(); }
    void loop() {
        for (int64_t task; (task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < tasks;) one(task);
    }
};
template <class F> void share_out(const msda_problem &p, int64_t tasks, const F &one) {
    Job<F> job{one, tasks, 0};
    int64_t threads = p.threads < tasks ? p.threads : tasks;
    if (threads > 1 && p.team)
        p.team(Job<F>::run, &job, unsigned(threads), 0);
    else
        job.loop();
}

template <class V> struct Tile { typedef V C; };
template <> struct Tile<half> { typedef float C; };

INLINE void copy(const half *from, int64_t count, float *to) {
    for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i]);
}
template <class C> INLINE void copy(const C *from, int64_t count, C *to) { memcpy(to, from, count * sizeof(C)); }

// One head's places end to end; masked ones are zero.
template <class V, class C> void pack(const msda_problem &p, int64_t picture, int64_t head, C *tile) {
    const V *from = (const V *)p.value + (picture * p.places * p.heads + head) * p.depth;
    const uint8_t *masked = p.mask ? p.mask + picture * p.places : nullptr;
    for (int64_t place = 0; place < p.places; ++place, from += p.heads * p.depth, tile += p.depth)
        if (masked && masked[place])
            memset((void *)tile, 0, p.depth * sizeof(C));
        else
            copy(from, p.depth, tile);
}

template <class C> INLINE const C *as_tile(const C *value) { return value; }
template <class C> INLINE const C *as_tile(const void *) { return nullptr; }  // halves are never read in place

template <class T, class V> void forward(const msda_problem &p) {
    typedef typename Tile<V>::C C;
    int64_t pairs = p.batch * p.heads, chunks = 1;
    if (p.threads > 1 && pairs < 2 * p.threads) chunks = (2 * p.threads + pairs - 1) / pairs;
    int64_t several = p.levels * p.points < LANES<T> ? LANES<T> : 1;
    int64_t size = (p.queries + chunks - 1) / chunks;
    size = (size + several - 1) / several * several;
    chunks = (p.queries + size - 1) / size;
    // Copying a head pays when its queries read more than about twice what there is to copy.
    bool packed = p.mask || sizeof(C) != sizeof(V) || (p.heads > 1 && size * p.levels * p.points * 2 >= p.places);
    int64_t stride = packed ? p.depth : p.heads * p.depth;
    share_out(p, pairs * chunks, [&](int64_t task) {
        int64_t picture = task / chunks / p.heads, head = task / chunks % p.heads;
        int64_t from = task % chunks * size, to = from + size < p.queries ? from + size : p.queries;
        Plan<T> plan(p);
        C *own = nullptr;
        const C *tile = as_tile<C>((const V *)p.value + (picture * p.places * p.heads + head) * p.depth);
        if (packed) {
            own = (C *)aligned_alloc(64, (p.places * p.depth * sizeof(C) + 63) / 64 * 64);
            pack<V>(p, picture, head, own);
            tile = own;
        }
        V *out = (V *)p.out + (picture * p.queries * p.heads + head) * p.depth;
        for (int64_t query = from; query < to; query += plan.queries) {
            int64_t count = to - query < plan.queries ? to - query : plan.queries;
            plan.template work<false>(p, picture, head, query, count, stride);
            for (int64_t slot = 0; slot < count; ++slot)
                gather_all(plan, slot * plan.samples, tile, p.depth, out + (query + slot) * p.heads * p.depth);
        }
        free(own);
    });
}

// Gradients of locations and weights, and those of the values into a tile of their own: nobody else adds to it.
template <class T> void backward(const msda_problem &p) {
    int64_t samples = p.levels * p.points, cells = p.places * p.depth;
    share_out(p, p.batch * p.heads, [&](int64_t task) {
        int64_t picture = task / p.heads, head = task % p.heads, row = p.heads * p.depth;
        Plan<T> plan(p);
        T *tile = (T *)malloc((cells + 1) * sizeof(T)), *sums = (T *)calloc(cells + 1, sizeof(T));
        pack<T>(p, picture, head, tile);
        const T *grads = (const T *)p.grad + (picture * p.queries * p.heads + head) * p.depth;
        for (int64_t query = 0; query < p.queries; query += plan.queries) {
            int64_t count = p.queries - query < plan.queries ? p.queries - query : plan.queries;
            plan.template work<true>(p, picture, head, query, count, p.depth);
            for (int64_t i = 0; i < count * samples; ++i) {
                int64_t asked = query + i / samples, sample = i % samples;
                const T *grad = grads + asked * row;
                int64_t a = plan.corner[i], b = a + plan.right_by[i], c = a + plan.down_by[i], d = c + plan.right_by[i];
                T left = plan.left[i], right = plan.right[i], upper = plan.upper[i], lower = plan.lower[i];
                T share = plan.share[i], wa = share * upper * left, wb = share * upper * right,
                  wc = share * lower * left, wd = share * lower * right;
                T da = 0, db = 0, dc = 0, dd = 0;
                int64_t at = 0;
                Vec<T> va = {}, vb = {}, vc = {}, vd = {};
                for (; at + LANES<T> <= p.depth; at += LANES<T>) {
                    Vec<T> g = load<Vec<T>>(grad + at);
                    va += g * load<Vec<T>>(tile + a + at), vb += g * load<Vec<T>>(tile + b + at);
                    vc += g * load<Vec<T>>(tile + c + at), vd += g * load<Vec<T>>(tile + d + at);
                    // One after the other: corners may be one and the same place.
                    store(sums + a + at, Vec<T>(load<Vec<T>>(sums + a + at) + g * wa));
                    store(sums + b + at, Vec<T>(load<Vec<T>>(sums + b + at) + g * wb));
                    store(sums + c + at, Vec<T>(load<Vec<T>>(sums + c + at) + g * wc));
                    store(sums + d + at, Vec<T>(load<Vec<T>>(sums + d + at) + g * wd));
                }
                for (int lane = 0; lane < LANES<T>; ++lane) da += va[lane], db += vb[lane], dc += vc[lane], dd += vd[lane];
                for (; at < p.depth; ++at) {
                    T g = grad[at];
                    da += g * tile[a + at], db += g * tile[b + at], dc += g * tile[c + at], dd += g * tile[d + at];
                    sums[a + at] += g * wa, sums[b + at] += g * wb, sums[c + at] += g * wc, sums[d + at] += g * wd;
                }
                int64_t to = ((picture * p.queries + asked) * p.heads + head) * samples + sample;
                T across = upper * (plan.has_right[i] * db - plan.has_left[i] * da) +
                           lower * (plan.has_right[i] * dd - plan.has_left[i] * dc);
                T along = left * (plan.has_lower[i] * dc - plan.has_upper[i] * da) +
                          right * (plan.has_lower[i] * dd - plan.has_upper[i] * db);
                ((T *)p.grad_positions)[2 * to] = share * across * T(plan.width[i]);
                ((T *)p.grad_positions)[2 * to + 1] = share * along * T(plan.height[i]);
                ((T *)p.grad_shares)[to] = upper * (left * da + right * db) + lower * (left * dc + right * dd);
            }
        }
        T *out = (T *)p.grad_value + (picture * p.places * p.heads + head) * p.depth;
        for (int64_t place = 0; place < p.places; ++place) memcpy(out + place * row, sums + place * p.depth, p.depth * sizeof(T));
        free(tile), free(sums);
    });
}
}  // namespace

extern "C" void NAME(msda_forward)(const msda_problem *p) {
    if (p->type == MSDA_FLOAT) forward<float, float>(*p);
    if (p->type == MSDA_DOUBLE) forward<double, double>(*p);
    if (p->type == MSDA_BFLOAT16) forward<float, bfloat16>(*p);
    if (p->type == MSDA_HALF) forward<float, half>(*p);
}

extern "C" void NAME(msda_backward)(const msda_problem *p) {
    if (p->type == MSDA_DOUBLE)
        backward<double>(*p);
    else
        backward<float>(*p);
}
