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
constexpr int GROUP = 32;     // keys at a time: two tiles of scores, a row of weights
constexpr int KEYS = 256;     // of a chunk: packed, they take 64 KiB
constexpr int WEIGHTS = KEYS + 32;  // a row of them: no power of two, whose lines share one place in L1
constexpr int SHARE = 1024;   // queries of a job at most
constexpr float NONE = -1e30f;
constexpr float FAR = 60;     // so many powers of two a score may lie from where its query's are counted from
constexpr float STEPS = 256;  // of a power of two: what a weight's exponent is rounded to
constexpr float ZERO = 127 * STEPS + 1;  // 2 ** 0 in bfloat16, in steps, and a half to round by

using bf16 = uint16_t;

struct alignas(64) Scratch {
    bf16 queries[SHARE][DIM];
    float sums[SHARE][DIM];        // of values by their weights, not yet divided by
    float totals[SHARE][16];       // the weights' sums, in parts
    float from[SHARE];             // where a query's scores are counted from, in powers of two: about the first ones' most
    uint32_t keys[KEYS / 16][2][16][16];    // tiles of pairs of numbers, by pair and key
    uint32_t values[KEYS / 32][4][16][16];  // tiles of pairs of keys, by pair and number; pairs in the order of weights
    float scores[ROWS][GROUP];
    bf16 weights[ROWS][WEIGHTS];
    float most[ROWS][16], sums_now[ROWS][16];  // of the chunk: the largest scores and the weights' sums, in parts
    float less[ROWS];
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

inline __m256i scaled(const bf16 *from, float unit) {
    return (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(widen(from), _mm512_set1_ps(unit)));
}

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
    auto value = [&](int place, int n) {
        if (place >= job.length) return _mm256_setzero_si256();
        const bf16 *from = s.qkv + (job.start + place) * row + (2 * s.heads + job.head) * DIM + n;
        return s.units ? scaled(from, s.units[job.start + place]) : _mm256_loadu_si256((const __m256i *)from);
    };
    for (int at = first; at < last; at += 2) {
        // Of 32 weights lie side by side: four of the first 16, four of the others, and so on.
        const int place = (at - first) % 32, pair = place % 16 / 4 * 4 + place / 16 * 2 + place % 4 / 2;
        for (int n = 0; n < DIM; n += 16) {
            const __m512i low = _mm512_cvtepu16_epi32(value(at, n)), high = _mm512_cvtepu16_epi32(value(at + 1, n));
            _mm512_store_si512(w.values[(at - first) / 32][n / 16][pair],
                               _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
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

// Steps of a power of two, from 2 ** -127 on, as bfloat16: 32 of 16 bits. Between two powers it is a line less what the
// curve hangs below it, by a table; with the rounding of steps, off by up to 6e-3 of it, where a bfloat16 is by 4e-3.
inline __m512i power_of_steps(__m512i steps, __m512i sag) {
    const __m512i below = _mm512_maskz_permutexvar_epi8(0x5555555555555555, _mm512_srli_epi16(steps, 2), sag);
    return _mm512_srli_epi16(_mm512_sub_epi16(steps, below), 1);
}

// What `power_of_steps` takes from a line, by the upper six bits between two powers.
struct Sag {
    alignas(64) int8_t of[64];
    Sag() {
        for (int i = 0; i < 64; i++) {
            const float part = (i * 4 + 0.5f) / STEPS;
            of[i] = (int8_t)std::lround(STEPS * (1 + part - std::exp2(part)));
        }
    }
};

// The keys that queries see: the i-th those from low + i to before high + i and end, counted from the first that are met.
struct Sight {
    int low, high, end;
    // Whether all queries see all keys of a group.
    bool whole(int first) const { return first >= low + ROWS - 1 && first + GROUP <= std::min(high, end); }
};

// Weigh a group of keys for some queries by their scores.
template <bool MASKED>
inline void weigh(Scratch &w, int i, int last, int column, const Sight &sight, __m512 factor, __m512i sag) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i ones = _mm512_set1_epi16(0x3f80);
    for (; i < last; i++) {
        __m512 x = _mm512_load_ps(w.scores[i]), y = _mm512_load_ps(w.scores[i] + 16);
        if (MASKED) {
            const int low = sight.low + i, seen = std::max(0, std::min(sight.end, sight.high + i) - low);
            const __m512i place = _mm512_add_epi32(lanes, _mm512_set1_epi32(column - low)), next = _mm512_set1_epi32(16);
            const __m512i width = _mm512_set1_epi32(seen);
            const __m512 none = _mm512_set1_ps(NONE);
            x = _mm512_mask_mov_ps(none, _mm512_cmplt_epu32_mask(place, width), x);
            y = _mm512_mask_mov_ps(none, _mm512_cmplt_epu32_mask(_mm512_add_epi32(place, next), width), y);
        }
        _mm512_store_ps(w.most[i], _mm512_max_ps(_mm512_load_ps(w.most[i]), _mm512_max_ps(x, y)));
        const __m512 less = _mm512_set1_ps(w.less[i]);
        // What is too small for a bfloat16, or not seen, becomes 0; what is too large is found by `most`.
        const __m512i a = _mm512_cvtps_epi32(_mm512_fmadd_ps(x, factor, less));
        const __m512i b = _mm512_cvtps_epi32(_mm512_fmadd_ps(y, factor, less));
        const __m512i weights = power_of_steps(_mm512_packus_epi32(a, b), sag);
        _mm512_store_si512(&w.weights[i][column], weights);
        const __m512 sum = _mm512_load_ps(w.sums_now[i]);
        _mm512_store_ps(w.sums_now[i], _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)ones));
    }
}

// Multiply 32 queries with a group of keys into tiles 0 to 3, in eight steps, with other work between them.
template <class Between>
inline void multiply(const bf16 *query, const uint32_t (*keys)[2][16][16], Between between) {
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (int half = 0; half < 2; half++) {
        _tile_loadd(4, query + half * 32, DIM * 2);
        _tile_loadd(5, query + 16 * DIM + half * 32, DIM * 2);
        _tile_loadd(6, keys[0][half], 64);
        _tile_dpbf16ps(0, 4, 6); between(half * 4);
        _tile_dpbf16ps(1, 5, 6); between(half * 4 + 1);
        _tile_loadd(7, keys[1][half], 64);
        _tile_dpbf16ps(2, 4, 7); between(half * 4 + 2);
        _tile_dpbf16ps(3, 5, 7); between(half * 4 + 3);
    }
}

inline void store_scores(Scratch &w) {
    _tile_stored(0, w.scores[0], GROUP * 4);
    _tile_stored(1, w.scores[16], GROUP * 4);
    _tile_stored(2, w.scores[0] + 16, GROUP * 4);
    _tile_stored(3, w.scores[16] + 16, GROUP * 4);
}

// Weigh `count` packed keys, of which the first lies `offset` within its chunk, for 32 queries. While a group is weighed,
// the next one is multiplied: the units for tiles and for vectors work at once.
void weigh_all(Scratch &w, int row, int offset, int count, const Sight &sight, float scale, const Sag &table) {
    const bf16 *query = w.queries[row];
    const __m512 factor = _mm512_set1_ps(scale * STEPS);
    const __m512i sag = _mm512_load_si512(table.of);
    auto keys = [&](int at) { return &w.keys[(offset + at) / 16]; };
    settle();
    multiply(query, keys(0), [](int) {});
    store_scores(w);
    for (int i = 0; i < ROWS; i++) {
        float from = w.from[row + i];
        if (from == NONE) {
            const __m512 most = _mm512_max_ps(_mm512_load_ps(w.scores[i]), _mm512_load_ps(w.scores[i] + 16));
            from = _mm512_reduce_max_ps(most) * scale;
        }
        w.less[i] = ZERO - from * STEPS;
        _mm512_store_ps(w.most[i], _mm512_set1_ps(NONE));
        _mm512_store_ps(w.sums_now[i], _mm512_setzero_ps());
    }
    for (int at = 0; at < count; at += GROUP) {
        const bool whole = sight.whole(at);
        auto some = [&](int step) {
            const int i = step * 4;
            whole ? weigh<false>(w, i, i + 4, at, sight, factor, sag) : weigh<true>(w, i, i + 4, at, sight, factor, sag);
        };
        if (at + GROUP < count) {
            multiply(query, keys(at + GROUP), some);
            store_scores(w);
        } else {
            for (int step = 0; step < 8; step++) some(step);
        }
    }
    settle();
}

// Count a chunk's weights in. Where the scores lie too far from where they were counted from: count them from their
// largest, bring what was summed there, and return false; the chunk is then to be weighed again.
bool counted(Scratch &w, int row, float scale) {
    bool done = true;
    for (int i = 0; i < ROWS; i++) {
        float &from = w.from[row + i];
        const __m512 most = _mm512_load_ps(w.most[i]);
        const float guess = (ZERO - w.less[i]) / STEPS;
        if (from != NONE && !_mm512_cmp_ps_mask(most, _mm512_set1_ps((from + FAR) / scale), _CMP_GT_OQ)) continue;
        const float top = _mm512_reduce_max_ps(most);
        if (top == NONE) continue;  // it saw none of these keys
        if (from == NONE && std::fabs(top * scale - guess) <= FAR) {
            from = guess;
            continue;
        }
        if (from != NONE) {
            const __m512 fade = power(_mm512_set1_ps(from - top * scale));
            _mm512_store_ps(w.totals[row + i], _mm512_mul_ps(_mm512_load_ps(w.totals[row + i]), fade));
            for (int n = 0; n < DIM; n += 16)
                _mm512_store_ps(&w.sums[row + i][n], _mm512_mul_ps(_mm512_load_ps(&w.sums[row + i][n]), fade));
        }
        from = top * scale;
        done = false;
    }
    if (done)
        for (int i = 0; i < ROWS; i++)
            _mm512_store_ps(w.totals[row + i],
                            _mm512_add_ps(_mm512_load_ps(w.totals[row + i]), _mm512_load_ps(w.sums_now[i])));
    return done;
}

// Let 32 queries from `at` meet `count` packed keys, of which the first has the place `first` and lies `offset` within
// its chunk; both in 32s.
void meet(const Stream &s, const Job &job, int at, int first, int offset, int count, float scale, Scratch &w) {
    static const Sag table;
    const int row = at - job.first;
    const int near = s.window < 0 ? job.length : s.window;
    const Sight sight{at - near - first, at + near + 1 - first, job.length - first};
    do weigh_all(w, row, offset, count, sight, scale, table);
    while (!counted(w, row, scale));
    float *sums = w.sums[row];
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
        w.from[i] = NONE;
        std::memset(w.totals[i], 0, sizeof w.totals[i]);
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
        const __m512 part = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(_mm512_load_ps(w.totals[i])));
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
