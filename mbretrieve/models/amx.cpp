// Attention over a packed stream in bfloat16, for CPUs with AMX: tiles of 32 queries meet chunks of 256 keys, with the
// softmax kept up as they come (https://arxiv.org/abs/2205.14135). Queries and keys are rotated (RoPE) as they are read,
// a sliding layer's queries meet only the keys within its window, and what is between the two products stays in the cache.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <thread>
#include <vector>

namespace {

constexpr int DIM = 64;       // of a head
constexpr int ROWS = 32;      // queries at a time: two tiles
constexpr int KEYS = 256;     // of a chunk: packed, they take 64 KiB
constexpr int SCORES = KEYS + 16, WEIGHTS = KEYS + 32;  // a row of them: no power of two, whose lines share one place in L1
constexpr int SHARE = 1024;   // queries of a job at most
constexpr float NONE = -1e30f;

using bf16 = uint16_t;

struct alignas(64) Scratch {
    bf16 queries[SHARE][DIM];
    float sums[SHARE][DIM];        // of values by their weights, not yet divided by
    float total[SHARE];            // the weights' sum
    float most[SHARE];             // the largest score so far, in powers of two
    uint32_t keys[KEYS / 16][2][16][16];    // tiles of pairs of numbers, by pair and key
    uint32_t values[KEYS / 32][4][16][16];  // tiles of pairs of keys, by pair and number
    float scores[ROWS][SCORES];
    bf16 weights[ROWS][WEIGHTS];
};

struct Stream {
    const bf16 *qkv;     // (T, 3, heads, DIM)
    bf16 *out;           // (T, heads, DIM)
    const float *cosine, *sine;  // (positions, step) of which DIM / 2 are read
    int64_t step;
    int heads, window;   // window < 0: none
    const float *units;  // (T) what the numbers of a token are to be multiplied by; null: 1
};

struct Job {
    int64_t start;  // of its text in the stream
    int length, first, last, head;
};

inline float unit_of(const Stream &s, int64_t token) { return s.units ? s.units[token] : 1.0f; }

inline __m512 widen(const bf16 *from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16));
}

inline void narrow(bf16 *to, __m512 x) { _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x)); }

// gcc's tile loads do not say that they read memory: what was stored before must be there.
inline void settle() { asm volatile("" ::: "memory"); }

// Rotate each pair (i, i + DIM / 2) by its position's angle.
inline void rotate(const bf16 *from, const float *cosine, const float *sine, float unit, bf16 *to) {
    const __m512 by = _mm512_set1_ps(unit);
    for (int i = 0; i < DIM / 2; i += 16) {
        __m512 a = _mm512_mul_ps(widen(from + i), by), b = _mm512_mul_ps(widen(from + i + DIM / 2), by);
        __m512 c = _mm512_loadu_ps(cosine + i), s = _mm512_loadu_ps(sine + i);
        narrow(to + i, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
        narrow(to + i + DIM / 2, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
    }
}

// Write columns of a 16 x 16 matrix of 32-bit numbers as rows.
inline void transpose(const uint32_t *from, int step, uint32_t *to) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + i * step);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {  // r[4 k + i] has, of rows 4 k to 4 k + 3, columns i, i + 4, i + 8, i + 12
        __m512i a = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88), b = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        __m512i c = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd), d = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
        _mm512_storeu_si512(to + i * 16, _mm512_shuffle_i32x4(a, b, 0x88));
        _mm512_storeu_si512(to + (i + 8) * 16, _mm512_shuffle_i32x4(a, b, 0xdd));
        _mm512_storeu_si512(to + (i + 4) * 16, _mm512_shuffle_i32x4(c, d, 0x88));
        _mm512_storeu_si512(to + (i + 12) * 16, _mm512_shuffle_i32x4(c, d, 0xdd));
    }
}

// Pack keys and values first <= place < last of a text, last beyond its end being zeros; first and last in 32s.
void pack(const Stream &s, const Job &job, int first, int last, Scratch &w) {
    const int64_t row = 3LL * s.heads * DIM;
    alignas(64) bf16 rows[16][DIM];
    for (int at = first; at < last; at += 16) {
        for (int i = 0; i < 16; i++) {
            const int place = at + i;
            if (place < job.length) {
                const bf16 *key = s.qkv + (job.start + place) * row + (s.heads + job.head) * DIM;
                rotate(key, s.cosine + place * s.step, s.sine + place * s.step,
                       unit_of(s, job.start + place), rows[i]);
            } else {
                std::memset(rows[i], 0, sizeof rows[i]);
            }
        }
        for (int half = 0; half < 2; half++)
            transpose((const uint32_t *)rows + half * 16, DIM / 2, &w.keys[(at - first) / 16][half][0][0]);
    }
    for (int at = first; at < last; at += 2) {
        const bf16 *value = s.qkv + (job.start + at) * row + (2 * s.heads + job.head) * DIM;
        const bool one = at < job.length, two = at + 1 < job.length;
        const __m512 by = _mm512_set1_ps(one ? unit_of(s, job.start + at) : 0);
        const __m512 by2 = _mm512_set1_ps(two ? unit_of(s, job.start + at + 1) : 0);
        for (int n = 0; n < 4; n++) {
            __m512 a = one ? _mm512_mul_ps(widen(value + n * 16), by) : _mm512_setzero_ps();
            __m512 b = two ? _mm512_mul_ps(widen(value + row + n * 16), by2) : _mm512_setzero_ps();
            __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(a));
            __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(b)), 16);
            _mm512_store_si512(w.values[(at - first) / 32][n][(at - first) % 32 / 2], _mm512_or_si512(low, high));
        }
    }
}

// 2 ** x for x <= 0, to 1e-4 of it; a bfloat16 has 2e-3.
inline __m512 power(__m512 x) {
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_fmadd_ps(f, _mm512_set1_ps(0.05517165f), _mm512_set1_ps(0.24261112f));
    y = _mm512_fmadd_ps(f, y, _mm512_set1_ps(0.69326099f));
    y = _mm512_fmadd_ps(f, y, _mm512_set1_ps(0.99992807f));
    return _mm512_scalef_ps(y, whole);
}

// Weigh keys first <= place < last by the scores of one query, which sees low <= place < high of them.
template <bool MASKED>
inline void weigh(float *scores, bf16 *weights, int first, int count, int low, int high, float scale, float &most,
                  float &total, float *sums) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i from = _mm512_set1_epi32(low - first), width = _mm512_set1_epi32(high - low);
    auto seen = [&](int i) {
        return _mm512_cmplt_epu32_mask(_mm512_sub_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(i)), from), width);
    };
    __m512 top = _mm512_set1_ps(NONE), top2 = top;  // two: neither waits for the other
    for (int i = 0; i < count; i += 32) {
        __m512 x = _mm512_load_ps(scores + i), y = _mm512_load_ps(scores + i + 16);
        top = MASKED ? _mm512_mask_max_ps(top, seen(i), top, x) : _mm512_max_ps(top, x);
        top2 = MASKED ? _mm512_mask_max_ps(top2, seen(i + 16), top2, y) : _mm512_max_ps(top2, y);
    }
    const float before = most, now = std::max(before, _mm512_reduce_max_ps(_mm512_max_ps(top, top2)) * scale);
    const __m512 factor = _mm512_set1_ps(scale), less = _mm512_set1_ps(-now);
    __m512 sum = _mm512_setzero_ps();
    __m512 sum2 = sum;
    for (int i = 0; i < count; i += 32) {
        __m512 y = power(_mm512_fmadd_ps(_mm512_load_ps(scores + i), factor, less));
        __m512 z = power(_mm512_fmadd_ps(_mm512_load_ps(scores + i + 16), factor, less));
        if (MASKED) {
            y = _mm512_maskz_mov_ps(seen(i), y);
            z = _mm512_maskz_mov_ps(seen(i + 16), z);
        }
        sum = _mm512_add_ps(sum, y);
        sum2 = _mm512_add_ps(sum2, z);
        _mm512_store_si512(weights + i, (__m512i)_mm512_cvtne2ps_pbh(z, y));
    }
    sum = _mm512_add_ps(sum, sum2);
    if (now != before) {
        const __m512 fade = power(_mm512_set1_ps(before - now));
        total *= _mm512_cvtss_f32(fade);
        for (int i = 0; i < DIM; i += 16) _mm512_store_ps(sums + i, _mm512_mul_ps(_mm512_load_ps(sums + i), fade));
        most = now;
    }
    total += _mm512_reduce_add_ps(sum);
}

// Let 32 queries from `at` meet `count` packed keys, of which the first has the place `first` and lies `offset` within
// its chunk; both in 32s.
void meet(const Stream &s, const Job &job, int at, int first, int offset, int count, float scale, Scratch &w) {
    bf16 *query = w.queries[at - job.first];
    float *sums = w.sums[at - job.first];
    settle();
    _tile_loadd(4, query, DIM * 2);
    _tile_loadd(5, query + 32, DIM * 2);
    _tile_loadd(6, query + 16 * DIM, DIM * 2);
    _tile_loadd(7, query + 16 * DIM + 32, DIM * 2);
    for (int n = 0; n < count; n += 16) {
        const auto &keys = w.keys[(offset + n) / 16];
        _tile_zero(0); _tile_zero(1);
        _tile_loadd(2, keys[0], 64);
        _tile_dpbf16ps(0, 4, 2); _tile_dpbf16ps(1, 6, 2);
        _tile_loadd(3, keys[1], 64);
        _tile_dpbf16ps(0, 5, 3); _tile_dpbf16ps(1, 7, 3);
        _tile_stored(0, &w.scores[0][n], SCORES * 4);
        _tile_stored(1, &w.scores[16][n], SCORES * 4);
    }
    const int near = s.window < 0 ? job.length : s.window;
    const bool all = first >= at + ROWS - 1 - near && first + count <= std::min(job.length, at + near + 1);
    for (int i = 0; i < ROWS; i++) {
        const int low = std::max(0, at + i - near), high = std::max(low, std::min(job.length, at + i + near + 1));
        const int place = at - job.first + i;
        if (all)
            weigh<false>(w.scores[i], w.weights[i], first, count, low, high, scale, w.most[place], w.total[place],
                         w.sums[place]);
        else
            weigh<true>(w.scores[i], w.weights[i], first, count, low, high, scale, w.most[place], w.total[place],
                        w.sums[place]);
    }
    settle();
    for (int half = 0; half < 2; half++) {
        float *to = sums + half * 32;
        _tile_loadd(0, to, DIM * 4); _tile_loadd(1, to + 16, DIM * 4);
        _tile_loadd(2, to + 16 * DIM, DIM * 4); _tile_loadd(3, to + 16 * DIM + 16, DIM * 4);
        for (int n = 0; n < count; n += 32) {
            const auto &values = w.values[(offset + n) / 32];
            _tile_loadd(4, &w.weights[0][n], WEIGHTS * 2);
            _tile_loadd(5, &w.weights[16][n], WEIGHTS * 2);
            _tile_loadd(6, values[2 * half], 64);
            _tile_loadd(7, values[2 * half + 1], 64);
            _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, to, DIM * 4); _tile_stored(1, to + 16, DIM * 4);
        _tile_stored(2, to + 16 * DIM, DIM * 4); _tile_stored(3, to + 16 * DIM + 16, DIM * 4);
    }
}

void work(const Stream &s, const Job &job, float scale, Scratch &w) {
    const int count = job.last - job.first, rows = (count + ROWS - 1) / ROWS * ROWS;
    for (int i = 0; i < rows; i++) {
        const int place = job.first + i;
        if (i < count)
            rotate(s.qkv + (job.start + place) * 3 * s.heads * DIM + job.head * DIM, s.cosine + place * s.step,
                   s.sine + place * s.step, unit_of(s, job.start + place), w.queries[i]);
        else
            std::memset(w.queries[i], 0, sizeof w.queries[i]);
        w.most[i] = NONE;
        w.total[i] = 0;
    }
    std::memset(w.sums, 0, sizeof w.sums[0] * rows);
    const int near = s.window < 0 ? job.length : s.window;
    const int begin = std::max(0, job.first - near) / 32 * 32, end = std::min(job.length, job.last + near);
    for (int chunk = begin; chunk < end; chunk += KEYS) {
        const int stop = std::min(chunk + KEYS, (end + 31) / 32 * 32);
        pack(s, job, chunk, stop, w);
        for (int at = job.first; at < job.last; at += ROWS) {
            const int first = std::max(chunk, std::max(0, at - near) / 32 * 32);
            const int last = std::min(stop, (std::min(job.length, at + ROWS + near) + 31) / 32 * 32);
            if (first < last) meet(s, job, at, first, first - chunk, last - first, scale, w);
        }
    }
    for (int i = 0; i < count; i++) {
        bf16 *to = s.out + ((job.start + job.first + i) * s.heads + job.head) * DIM;
        const __m512 part = _mm512_set1_ps(1.0f / w.total[i]);
        for (int n = 0; n < DIM; n += 16) narrow(to + n, _mm512_mul_ps(_mm512_load_ps(w.sums[i] + n), part));
    }
}

void configure_tiles() {
    alignas(64) uint8_t config[64] = {1};
    for (int tile = 0; tile < 8; tile++) {
        config[16 + 2 * tile] = 64;  // bytes a row
        config[48 + tile] = 16;      // rows
    }
    _tile_loadconfig(config);
}

// x * (1 + erf(x / sqrt(2))) / 2, erf by formula 7.1.26 of Abramowitz and Stegun.
inline __m512 gelu(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
    __m512 y = _mm512_fmadd_ps(t, _mm512_set1_ps(1.061405429f), _mm512_set1_ps(-1.453152027f));
    y = _mm512_fmadd_ps(t, y, _mm512_set1_ps(1.421413741f));
    y = _mm512_fmadd_ps(t, y, _mm512_set1_ps(-0.284496736f));
    y = _mm512_fmadd_ps(t, y, _mm512_set1_ps(0.254829592f));
    y = _mm512_mul_ps(_mm512_mul_ps(t, y), power(_mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-1.44269504f))));
    // y = 1 - erf(|x| / sqrt(2)): the share of x that is lost, twice, if x is above 0, and that is kept if below.
    const __m512 half = _mm512_mul_ps(_mm512_mul_ps(x, y), _mm512_set1_ps(0.5f));
    return _mm512_mask_sub_ps(half, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), x, half);
}

// Write a row in bytes, as shares of its largest number, and return what one unit is worth.
inline float quantize(const float *row, int width, int8_t *to) {
    __m512 most = _mm512_setzero_ps();
    for (int i = 0; i < width; i += 16) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(row + i)));
    const float unit = std::max(_mm512_reduce_max_ps(most), 1e-30f) / 127;
    const __m512 units = _mm512_set1_ps(1 / unit);
    for (int i = 0; i < width; i += 16) {
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(row + i), units));
        _mm_storeu_si128((__m128i *)(to + i), _mm512_cvtsepi32_epi8(whole));
    }
    return unit;
}

// Normalise a row (layer norm without bias) into floats.
inline void normalize(const bf16 *x, const float *weight, int width, float eps, float *to) {
    __m512 sum = _mm512_setzero_ps(), squares = sum;
    for (int i = 0; i < width; i += 16) sum = _mm512_add_ps(sum, widen(x + i));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / width);
    for (int i = 0; i < width; i += 16) {
        const __m512 away = _mm512_sub_ps(widen(x + i), mean);
        _mm512_storeu_ps(to + i, away);
        squares = _mm512_fmadd_ps(away, away, squares);
    }
    const __m512 part = _mm512_set1_ps(1 / std::sqrt(_mm512_reduce_add_ps(squares) / width + eps));
    for (int i = 0; i < width; i += 16) {
        const __m512 y = _mm512_mul_ps(_mm512_loadu_ps(to + i), part);
        _mm512_storeu_ps(to + i, _mm512_mul_ps(y, _mm512_loadu_ps(weight + i)));
    }
}

// Have so many threads work on `count` things, each of which takes `step` of them at a time; the caller's is one of them,
// and the only one where no more are to be had.
template <class Do>
void share_out(int64_t count, int64_t step, int threads, Do work) {
    std::atomic<int64_t> next{0};
    auto run = [&] {
        work([&](int64_t &first, int64_t &last) {
            first = next.fetch_add(step);
            last = std::min(count, first + step);
            return first < count;
        });
    };
    std::vector<std::thread> crew;
    const int64_t most = std::min<int64_t>(threads, (count + step - 1) / step);
    try {
        for (int64_t i = 1; i < most; i++) crew.emplace_back(run);
    } catch (const std::exception &) {
    }
    run();
    for (auto &one : crew) one.join();
}

}  // namespace

extern "C" {

// Ask the system for the tiles; 0: granted, for the whole process.
int mbretrieve_prepare() { return (int)syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */); }

// Attend within each text of a stream: lengths (texts), qkv (T, 3, heads, 64), units (T) or null -> out (T, heads, 64).
void mbretrieve_attend(const uint16_t *qkv, const float *units, uint16_t *out, const float *cosine, const float *sine,
                       int64_t step, const int64_t *lengths, int64_t texts, int heads, int window, float scale,
                       int threads) {
    const Stream s{qkv, out, cosine, sine, step, heads, window, units};
    std::vector<Job> jobs;
    int64_t start = 0;
    for (int64_t text = 0; text < texts; start += lengths[text++])
        for (int first = 0; first < lengths[text]; first += SHARE)
            for (int head = 0; head < heads; head++)
                jobs.push_back({start, (int)lengths[text], first, (int)std::min<int64_t>(first + SHARE, lengths[text]),
                                head});
    share_out(jobs.size(), 1, threads, [&](auto take) {
        std::vector<Scratch> scratch(1);
        // On the caller's thread the tiles are as oneDNN configured them, which does not look again.
        alignas(64) uint8_t before[64];
        const uint32_t rounding = _mm_getcsr();
        _tile_storeconfig(before);
        configure_tiles();
        _mm_setcsr(rounding | 0x8040);  // numbers too small for their format are zeros: no trap into microcode
        for (int64_t at, last; take(at, last);) work(s, jobs[at], scale, scratch[0]);
        _mm_setcsr(rounding);
        asm volatile("" ::: "memory");
        _tile_loadconfig(before);
    });
}

// Normalise rows x (T, width), to which `more` times `units` is added first, in place, if it is not null: into `out` in
// bfloat16, or if that is null in bytes, with what a row's unit is worth in `worth`.
void mbretrieve_norm(uint16_t *x, const uint16_t *more, const float *units, const float *weight, float eps, int64_t rows,
                     int width, uint16_t *out, int8_t *bytes, float *worth, int threads) {
    share_out(rows, 64, threads, [&](auto take) {
        std::vector<float> row(width);
        for (int64_t at, last; take(at, last);)
            for (; at < last; at++) {
                uint16_t *own = x + at * width;
                if (more)
                    for (int i = 0; i < width; i += 16)
                        narrow(own + i, _mm512_fmadd_ps(widen(more + at * width + i), _mm512_set1_ps(units[at]),
                                                        widen(own + i)));
                normalize(own, weight, width, eps, row.data());
                if (bytes)
                    worth[at] = quantize(row.data(), width, bytes + at * width);
                else
                    for (int i = 0; i < width; i += 16) narrow(out + at * width + i, _mm512_loadu_ps(&row[i]));
            }
    });
}

// Write rows (T, width) in bytes.
void mbretrieve_quantize(const uint16_t *x, int64_t rows, int width, int8_t *bytes, float *worth, int threads) {
    share_out(rows, 64, threads, [&](auto take) {
        std::vector<float> row(width);
        for (int64_t at, last; take(at, last);)
            for (; at < last; at++) {
                for (int i = 0; i < width; i += 16) _mm512_storeu_ps(&row[i], widen(x + at * width + i));
                worth[at] = quantize(row.data(), width, bytes + at * width);
            }
    });
}

// gelu(a) * b of rows (T, a then b, width each) by their units, in bytes.
void mbretrieve_gate(const uint16_t *both, const float *units, int64_t rows, int width, int8_t *bytes, float *worth,
                     int threads) {
    share_out(rows, 64, threads, [&](auto take) {
        std::vector<float> row(width);
        for (int64_t at, last; take(at, last);)
            for (; at < last; at++) {
                const uint16_t *signal = both + at * 2 * width, *gate = signal + width;
                const __m512 unit = _mm512_set1_ps(units[at]);
                for (int i = 0; i < width; i += 16) {
                    const __m512 y = gelu(_mm512_mul_ps(widen(signal + i), unit));
                    _mm512_storeu_ps(&row[i], _mm512_mul_ps(y, _mm512_mul_ps(widen(gate + i), unit)));
                }
                worth[at] = quantize(row.data(), width, bytes + at * width);
            }
    });
}
}
